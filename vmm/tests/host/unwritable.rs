//! Output that cannot be written: the manager goes on, and commands end as they would.

use std::fs::File;
use std::io::{PipeReader, PipeWriter};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use levy_launcher::api_client::Client;
use levy_protocol::link::{GroupLimits, Hello};

use crate::harness::{Managed, hello, levy_command, until};
use crate::intruders::answers;

/// The file that a full disk is like.
fn full_disk() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// A pipe whose reader has gone.
fn closed_pipe() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

/// A pipe into which nothing fits; it is not read.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (unread, full) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&full, true).unwrap();
    while rustix::io::write(&full, &[b'x'; 4096]).is_ok() {}
    // The other end's, too: it is the same file.
    rustix::io::ioctl_fionbio(&full, false).unwrap();
    (unread, full)
}

/// Killed when this is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `levy host` with this standard error plans, answers, says much, and ends when it is told to.
fn manages(stderr: Stdio) {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("levy");
    let mut command = levy_command(dir.path());
    command.args(["host", "--budget", "300M", "--cgroup", "off"]);
    let mut host = Process(command.stderr(stderr).spawn().unwrap());
    let client = Client::at(&run_dir);
    let rounds = || client.host().ok().map(|shown| shown.rounds.count);
    until("the manager", || {
        assert_eq!(host.0.try_wait().unwrap(), None, "it has ended");
        rounds().is_some()
    });
    for _ in 0..4 {
        // It says that a guest is here, that its process asks, and that it is away.
        assert_eq!(answers("admitted", &run_dir).len(), 2);
    }
    let before = rounds().unwrap();
    until("more rounds", || rounds().unwrap() > before + 2);
    let pid = nix::unistd::Pid::from_raw(host.0.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert!(host.0.wait().unwrap().success());
}

#[test]
fn a_manager_goes_on_where_the_disk_under_its_log_is_full() {
    manages(full_disk());
}

#[test]
fn a_manager_goes_on_where_its_log_has_no_reader_any_more() {
    manages(closed_pipe());
}

#[test]
fn a_manager_goes_on_where_its_log_is_not_read() {
    let (_unread, full) = full_pipe();
    manages(full.into());
}

#[test]
fn a_manager_says_what_waited_once_its_log_is_read_again() {
    let (unread, full) = full_pipe();
    let reader = std::thread::spawn(move || {
        // Until then the manager ended long ago, or waits for its last words.
        std::thread::sleep(Duration::from_millis(500));
        std::io::read_to_string(unread).unwrap()
    });
    manages(full.into());
    let text = reader.join().unwrap();
    assert!(text.contains("levy: no manager any more"), "{text}");
}

/// Commands that fail before they start anything, with their status.
const FAILING: [(&[&str], i32); 7] = [
    (&["ls"], 1),
    (&["set", "g"], 2),
    (&["up", "no.toml"], 1),
    (&["run", "--count", "2", "--net", "tap=t"], 1),
    (&["vmm"], 1),
    (&["host", "--swap", "/no/such/folder", "--cgroup", "off"], 1),
    (&["bench", "overhead", "--json", "/no/such/folder/file"], 1),
];

#[test]
fn commands_that_fail_have_their_status_wherever_the_message_goes() {
    for (args, status) in FAILING {
        for stderr in [Stdio::piped(), full_disk(), closed_pipe()] {
            let dir = tempfile::tempdir().unwrap();
            let mut command = levy_command(dir.path());
            let output = command.args(args).stderr(stderr).output().unwrap();
            assert_eq!(output.status.code(), Some(status), "{args:?} {output:?}");
        }
    }
}

/// As in `levy ls | head -1`: the reader had what it wanted. A full disk is another matter.
#[test]
fn commands_whose_reader_has_gone_end_quietly_and_well_and_others_say_what_is_lost() {
    let managed = Managed::new(256);
    let _kept = managed.admit("g", 64);
    let run = |args: &[&str], stdout: Stdio| -> Output {
        let mut command = levy_command(managed.dir.path());
        command.args(args).env("LEVY_RUN_DIR", managed.dir.path());
        command.stdout(stdout).stderr(Stdio::piped()).output().unwrap()
    };
    let printing: [&[&str]; 18] = [
        &["ls"],
        &["ls", "--json"],
        &["stats"],
        &["stats", "--json"],
        &["stats", "g"],
        &["stats", "g", "--json"],
        &["set", "tax=1"],
        &["set", "g", "shares=high", "--json"],
        &["pause", "g"],
        &["resume", "--all", "--json"],
        &["stop", "g", "--wait", "0s"],
        &["doctor"],
        &["doctor", "--json"],
        &["--help"],
        &["--version"],
        &["help", "run"],
        &["ls", "--help"],
        &["bench", "sharing", "--help"],
    ];
    for args in printing {
        let (read, gone) = (run(args, Stdio::piped()), run(args, closed_pipe()));
        assert!(!read.stdout.is_empty(), "{args:?} {read:?}");
        assert_eq!(gone.status, read.status, "{args:?} {gone:?}");
        assert!(gone.stderr.is_empty(), "{args:?} {gone:?}");
        let lost = run(args, full_disk());
        let text = String::from_utf8_lossy(&lost.stderr);
        assert_eq!(lost.status.code(), Some(1), "{args:?} {text}");
        assert!(
            text.contains("cannot write to standard output"),
            "{args:?} {text}"
        );
    }
}

#[test]
fn a_change_that_cannot_be_kept_is_made_and_its_answer_says_so() {
    let managed = Managed::new(256);
    let group = Some(GroupLimits {
        name: "web".into(),
        shares: 1000,
        min: 0,
        max: None,
    });
    let _kept = managed.introduce(Hello {
        group,
        ..hello("g", 16)
    });
    // No file takes the place of a folder.
    let obstacle = managed.dir.path().join("kept.json");
    for kept in [false, true] {
        match kept {
            false => until("a folder in the file's place", || {
                std::fs::remove_file(&obstacle).is_ok() && std::fs::create_dir(&obstacle).is_ok()
            }),
            true => std::fs::remove_dir(&obstacle).unwrap(),
        }
        for (path, arguments) in [
            ("/guests/g", &["g", "shares=7"][..]),
            ("/groups/web", &["--group", "web", "shares=7"]),
            ("/host", &["tax=7"]),
        ] {
            let (method, body) = match path {
                "/host" => ("PUT", "{\"tax_percent\": 7}"),
                _ => ("PATCH", "{\"shares\": 7}"),
            };
            let (status, answer) = managed.request(method, path, body);
            let set = managed.levy(&[&["set"], arguments].concat());
            let text = String::from_utf8_lossy(&set.stderr);
            assert!(status == 200 && set.status.success(), "{answer} {text}");
            assert_eq!(answer["shares"].as_u64().unwrap_or(7), 7, "{answer}");
            let told = |said: &str| said.contains("kept.json cannot be written");
            assert_eq!(
                answer["unkept"].as_str().is_some_and(told),
                !kept,
                "{path} {answer}"
            );
            assert_eq!(text.contains("warning: ") && told(&text), !kept, "{path} {text}");
        }
    }
}

#[test]
fn a_manager_that_may_write_no_file_goes_on_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut shell = std::process::Command::new("sh");
    let levy = levy_command(dir.path());
    // RLIMIT_FSIZE: its signal would end the manager at the first change that it writes down.
    shell
        .args(["-c", "ulimit -f 0; exec \"$@\"", "sh"])
        .arg(levy.get_program());
    shell.args(["host", "--budget", "300M", "--cgroup", "off"]);
    shell
        .env("XDG_RUNTIME_DIR", dir.path())
        .env("TMPDIR", dir.path())
        .env_remove("LEVY_RUN_DIR");
    let mut host = Process(shell.stderr(Stdio::piped()).spawn().unwrap());
    let answers = || {
        let output = levy_command(dir.path())
            .args(["set", "tax=0.5"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        output.status.success() && text.contains("warning: ") && text.contains("File too large")
    };
    until("an answer", || {
        assert_eq!(host.0.try_wait().unwrap(), None, "it has ended");
        answers()
    });
    assert!(answers());
    let pid = nix::unistd::Pid::from_raw(host.0.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert!(host.0.wait().unwrap().success());
    let said = std::io::read_to_string(host.0.stderr.take().unwrap()).unwrap();
    assert!(said.contains("File too large"), "{said}");
}
