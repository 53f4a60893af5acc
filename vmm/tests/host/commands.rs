//! The commands that ask a manager, as processes.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use levy_launcher::api_client::Client;
use levy_protocol::api::Phase;
use levy_protocol::link::Hello;
use serde_json::Value;

use crate::harness::{MIB, Managed, hello, levy_command, until};

#[test]
fn commands_show_and_change_a_manager() {
    let managed = Managed::new(256);
    let kept = managed.admit("web-1", 64);
    until("a plan", || {
        managed.client().guest("web-1").unwrap().target.is_some()
    });
    let listed = managed.levy(&["ls"]);
    let text = String::from_utf8(listed.stdout).unwrap();
    for column in [
        "MEMSZ", "GRANT", "TGT", "ACTV", "MCTLSZ", "MCTLTGT", "SHRD", "ZERO", "ZIP", "SWCUR", "OVHD",
    ] {
        assert!(text.contains(column), "{column} is not in {text}");
    }
    let row = text.lines().find(|line| line.starts_with("web-1")).unwrap();
    assert_eq!(
        row.split_whitespace().take(3).collect::<Vec<_>>(),
        ["web-1", "running", "64.0"]
    );
    assert_eq!(managed.levy_json(&["ls"])["guests"][0]["name"], "web-1");

    let stats = String::from_utf8(managed.levy(&["stats"]).stdout).unwrap();
    assert!(
        stats.contains("budget 256.0 MiB") && stats.contains("web-1"),
        "{stats}"
    );
    let why = String::from_utf8(managed.levy(&["stats", "web-1"]).stdout).unwrap();
    assert!(why.contains("why: web-1 should hold"), "{why}");
    assert_eq!(managed.levy_json(&["stats"])["host"]["guests"], 1);

    let set = managed.levy_json(&["set", "web-1", "shares=high", "min=20M"]);
    assert_eq!(
        (&set["limits"]["shares"], &set["limits"]["min_bytes"]),
        (&2000.into(), &(20 * MIB).into())
    );
    let set = managed.levy_json(&["set", "budget=200M", "tax=0", "rebalance=3s"]);
    assert_eq!(set["settings"]["budget_bytes"], 200 * MIB);
    assert_eq!(
        (
            &set["settings"]["tax_percent"],
            &set["settings"]["rebalance_seconds"]
        ),
        (&0.0.into(), &3.0.into())
    );

    assert_eq!(managed.levy_json(&["pause", "web-1"])["paused"][0], "web-1");
    assert_eq!(managed.levy_json(&["ls"])["guests"][0]["phase"], "paused");
    assert_eq!(managed.levy_json(&["resume", "--all"])["resumed"][0], "web-1");
    // Its process is this one, which does not end.
    let stop = managed.levy(&["stop", "--all", "--wait", "1s"]);
    let text = String::from_utf8_lossy(&stop.stderr);
    assert!(
        stop.status.code() == Some(1) && text.contains("still running"),
        "{stop:?}"
    );
    assert_eq!(managed.levy_json(&["ls"])["guests"][0]["phase"], "stopping");
    drop(kept);
}

#[test]
fn commands_say_what_is_wrong() {
    let managed = Managed::new(256);
    let _kept = managed.admit("g", 64);
    let cases: &[(&[&str], i32, &str)] = &[
        (&["set", "g"], 2, "say what to change"),
        (&["set", ""], 2, "an empty word"),
        (&["set", "", "shares=1"], 2, "an empty word"),
        (&["set", "--group", "", "shares=1"], 2, "an empty word"),
        (&["stats", ""], 2, "GUEST"),
        (&["stop", "g", ""], 2, "GUEST"),
        (&["set", "g", "shares=lots"], 2, "low (500)"),
        (&["set", "g", "max=1G"], 2, "set when it is started"),
        (
            &["set", "g", "shares=4294967296"],
            2,
            "\"4294967296\" is not low (500), normal (1000), high (2000) or a number above 0, 4294967295 at most",
        ),
        (&["set", "tax=100"], 2, "below 100"),
        (&["set", "rebalance=0s"], 2, "from 0.1 to 86400 s"),
        (&["host", "--rebalance", "0s"], 2, "from 0.1 to 86400 s"),
        (&["host", "--rebalance", "1000000h"], 2, "from 0.1 to 86400 s"),
        (&["set", "tax=1", "tax=2"], 2, "given twice"),
        (&["set", "shares=1"], 2, "name the guest first"),
        (&["set", "colour=red"], 2, "budget, tax and rebalance"),
        (&["set", "budget=8M"], 1, "promise"),
        (&["set", "nobody", "shares=1"], 1, "no guest is called"),
        (&["stats", "no/body"], 1, "no guest is called"),
        (&["stop", "nobody"], 1, "no guest is called"),
        (&["pause"], 2, "<GUEST|--all>"),
        (&["stop", "g", "--all"], 2, "cannot be used with"),
    ];
    for (args, status, words) in cases {
        let output = managed.levy(args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(*status), "{args:?}: {text}");
        assert!(text.contains(words), "{args:?}: {words:?} is not in {text}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn what_a_guests_process_says_of_itself_moves_no_cursor() {
    let managed = Managed::new(256);
    let control = Some("/a\n\u{1b}[2Jb".to_owned());
    let _kept = managed.introduce(Hello {
        control,
        ..hello("g", 16)
    });
    let text = String::from_utf8(managed.levy(&["stats", "g"]).stdout).unwrap();
    assert!(text.contains("control socket /a\\n\\u{1b}[2Jb\n"), "{text:?}");
}

#[test]
fn a_run_directory_with_too_long_a_path_is_refused_with_its_length() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("n".repeat(120));
    for args in [&["host", "--budget", "300M", "--cgroup", "off"][..], &["ls"]] {
        let mut command = levy_command(dir.path());
        let output = command.args(args).arg("--run-dir").arg(&long).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        let words = [
            "nnn/",
            ".sock",
            " bytes, and that of a socket at most 107; use a shorter directory",
        ];
        assert!(words.iter().all(|word| text.contains(word)), "{args:?}: {text}");
    }
}

#[test]
fn managers_are_found_or_it_is_said_how_to_start_one() {
    let empty = tempfile::tempdir().unwrap();
    let ls = |dir: &Path| levy_command(dir).args(["ls", "--json"]).output().unwrap();
    let none = ls(empty.path());
    let text = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(
        none.status.code() == Some(1) && text.contains("`levy host`"),
        "{text}"
    );

    // As `levy run` does it: a folder of its own, under a name that tells whose.
    let one = Managed::new(256);
    let link = |number: u32| {
        let folder = empty.path().join(format!("levy-run-{number}"));
        std::os::unix::fs::symlink(one.dir.path(), folder).unwrap();
    };
    link(std::process::id());
    assert!(ls(empty.path()).status.success());
    link(1);
    let two = ls(empty.path());
    let text = String::from_utf8_lossy(&two.stderr).into_owned();
    assert!(
        text.contains("--run-dir") && text.contains("levy-run-1"),
        "{text}"
    );
    // The default manager comes first.
    std::os::unix::fs::symlink(one.dir.path(), empty.path().join("levy")).unwrap();
    assert!(ls(empty.path()).status.success());
}

#[test]
fn levy_host_serves_its_api_and_takes_its_socket_along() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("levy");
    let mut host = levy_command(dir.path())
        .args(["host", "--budget", "300M"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let client = Client::at(&run_dir);
    until("the manager", || client.host().is_ok());
    let view = client.host().unwrap();
    assert_eq!((view.pid, view.settings.budget_bytes), (host.id(), 300 * MIB));
    let mode = PermissionsExt::mode(
        &std::fs::metadata(levy_protocol::run_dir::api_socket(&run_dir))
            .unwrap()
            .permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    let found = levy_command(dir.path())
        .args(["stats", "--json"])
        .output()
        .unwrap();
    let found: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(found["host"]["pid"], host.id());
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(host.id() as i32),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    assert!(host.wait().unwrap().success());
    let left: Vec<_> = std::fs::read_dir(&run_dir)
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    // What the next manager takes over, and nothing else.
    assert_eq!(left, ["kept.json"]);
}

#[test]
fn fleet_files_are_refused_before_anything_starts_and_down_finds_what_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fleet.toml");
    let run = |args: &[&str]| {
        let output = levy_command(dir.path()).args(args).arg(&path).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    for command in ["up", "down"] {
        let (status, text) = run(&[command]);
        assert!(
            status == Some(1) && text.contains("cannot read the fleet file"),
            "{text}"
        );
    }
    std::fs::write(&path, "[guest.web]\ncount = 2\nsize = \"64M\"\nmin = \"1G\"\n").unwrap();
    for command in ["up", "down"] {
        let (status, text) = run(&[command]);
        assert!(
            status == Some(1) && text.contains("fleet.toml:4: guest.web.min: "),
            "{text}"
        );
    }
    std::fs::write(&path, "[guest.web]\ncount = 2\nsize = \"64M\"\n").unwrap();
    let (status, text) = run(&["down"]);
    assert!(status == Some(1) && text.contains("no guest of"), "{text}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");

    let managed = Managed::new(256);
    let of_fleet = Hello {
        fleet: Some(path.canonicalize().unwrap().display().to_string()),
        ..hello("web-1", 64)
    };
    let twin = Hello {
        fleet: Some("/elsewhere/fleet.toml".into()),
        ..hello("web-2", 64)
    };
    let _kept = (
        managed.introduce(of_fleet),
        managed.introduce(twin),
        managed.admit("other", 64),
    );
    std::os::unix::fs::symlink(managed.dir.path(), dir.path().join("levy")).unwrap();
    let (status, text) = run(&["down", "--wait", "0s"]);
    assert_eq!(status, Some(0), "{text}");
    let phase = |name: &str| managed.client().guest(name).unwrap().phase;
    assert_eq!(
        (phase("web-1"), phase("other")),
        (Phase::Stopping, Phase::Running)
    );
    assert_eq!(phase("web-2"), Phase::Running, "the same name from another file");
}

#[test]
fn a_manager_of_another_user_is_not_taken_for_none() {
    if !rustix::process::getuid().is_root() {
        println!("skipped: only root can be another user");
        return;
    }
    let managed = Managed::new(256);
    let dir = managed.dir.path().to_owned();
    std::fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
    // A program that every user may run.
    let open = tempfile::tempdir().unwrap();
    std::fs::set_permissions(open.path(), Permissions::from_mode(0o755)).unwrap();
    let program = open.path().join("levy");
    std::fs::copy(env!("CARGO_BIN_EXE_levy"), &program).unwrap();
    let mut ls = Command::new(program);
    ls.arg("ls").env("LEVY_RUN_DIR", &dir).env("TMPDIR", open.path());
    let output = ls.uid(65_534).gid(65_534).current_dir("/").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("open to its owner only"), "{said}");
}
