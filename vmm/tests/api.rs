//! The manager's API over a real socket, and the commands that use it, as processes: a manager in this process, a
//! guest's engine in this process, and raw HTTP from clients good and bad.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use allocator::Pages;
use levy::api::client::{Client, ClientError};
use levy::api::types::{GuestChange, HostChange, Phase};
use levy::api::{self, Server};
use levy::engine::{Attendant, Duties, Engine, Introduction};
use levy::link::{BalloonReport, Hello, Sharing, VERSION};
use levy::manager::host::{Doors, Host};
use levy::manager::policy::Settings;
use levy::memory::GuestRam;
use serde_json::Value;
use vm_memory::{Bytes, GuestAddress};

const MIB: u64 = 1 << 20;

/// What a guest's process was told to do beside its memory.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Stop,
    Pause(bool),
}

/// Notes what it is told.
struct Notes {
    told: Sender<Told>,
    balloon: Mutex<u64>,
}

impl Duties for Notes {
    fn balloon(&mut self, pages: u64) {
        *self.balloon.lock().unwrap_or_else(PoisonError::into_inner) = pages;
    }

    fn balloon_report(&self) -> Option<BalloonReport> {
        let pages = *self.balloon.lock().unwrap_or_else(PoisonError::into_inner);
        Some(BalloonReport {
            target_pages: pages,
            actual_pages: pages,
            statistics: [("free_memory".to_owned(), 5 * MIB)].into(),
            statistics_age_seconds: Some(0.5),
            ..BalloonReport::default()
        })
    }

    fn is_up(&self) -> bool {
        true
    }

    fn stop(&mut self) {
        let _ = self.told.send(Told::Stop);
    }

    fn pause(&mut self, paused: bool) {
        let _ = self.told.send(Told::Pause(paused));
    }
}

/// A manager with its API, gone when this is dropped.
struct Managed {
    host: Host,
    _api: Server,
    dir: tempfile::TempDir,
}

impl Drop for Managed {
    fn drop(&mut self) {
        self.host.close();
    }
}

impl Managed {
    fn new(mib: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings::new(Pages::from_mib(mib));
        let host = Host::open(Doors::in_dir(dir.path()), settings, Pages::from_mib(4096)).unwrap();
        let running = host.clone();
        std::thread::spawn(move || running.run());
        let api = api::serve(host.clone(), dir.path()).unwrap();
        Self { host, _api: api, dir }
    }

    fn client(&self) -> Client {
        Client::at(self.dir.path())
    }

    /// Admits a guest of which nothing will be heard; cut off when the answer is dropped.
    fn admit(&self, name: &str, mib: u64) -> Introduction {
        let sharing = Sharing::Off;
        Introduction::make(
            self.dir.path(),
            Hello {
                sharing,
                ..hello(name, mib)
            },
        )
        .unwrap()
    }

    /// A guest of 16 MiB with an engine: 1024 pages of 16 contents, 1024 of zeros.
    fn attend(&self, name: &str) -> (Arc<GuestRam>, Receiver<Told>) {
        let ram = Arc::new(GuestRam::new(16 * MIB).unwrap());
        for page in 0..2048_u64 {
            let mut bytes = [0_u8; 4096];
            if page < 1024 {
                bytes[..8].copy_from_slice(&(page % 16 + 1).to_le_bytes());
            }
            ram.view().write_slice(&bytes, GuestAddress(page * 4096)).unwrap();
        }
        let engine = Engine::start(&ram, None).unwrap();
        let (told, heard) = channel();
        let balloon = Mutex::default();
        let introduction = Introduction::make(self.dir.path(), hello(name, 16)).unwrap();
        Attendant::start(introduction, engine, Box::new(Notes { told, balloon })).unwrap();
        (ram, heard)
    }

    /// Sends `text` as it is and returns the answer's status and body.
    fn raw(&self, text: &[u8]) -> (u16, Value) {
        let mut stream = UnixStream::connect(api::socket_in(self.dir.path())).unwrap();
        stream.write_all(text).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    fn request(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        let text =
            format!("{method} {path} HTTP/1.1\r\nHost: levy\r\nContent-Length: {length}\r\n\r\n{body}");
        self.raw(text.as_bytes())
    }

    /// Runs `levy` with `args` against this manager.
    fn levy(&self, args: &[&str]) -> Output {
        let mut command = levy_command(self.dir.path());
        command.args(args).arg("--run-dir").arg(self.dir.path());
        command.output().unwrap()
    }

    fn levy_json(&self, args: &[&str]) -> Value {
        let output = self.levy(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// `levy` that finds nothing but what is in `dir`.
fn levy_command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_levy"));
    command
        .env("XDG_RUNTIME_DIR", dir)
        .env("TMPDIR", dir)
        .env_remove("LEVY_RUN_DIR");
    command
}

fn hello(name: &str, mib: u64) -> Hello {
    Hello {
        version: VERSION,
        name: name.into(),
        size: mib * MIB,
        min: mib * MIB / 4,
        shares: 1000,
        sharing: Sharing::Domain("test".into()),
        control: Some("/somewhere/ctl.sock".into()),
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{what} did not happen within 30 s"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_guest_is_seen_with_its_pages_its_target_and_the_reason() {
    let managed = Managed::new(256);
    let (_ram, told) = managed.attend("g1");
    let client = managed.client();
    until("sharing, as seen through the API", || {
        // A hundred pages may be away for a sample.
        let memory = client.guest("g1").unwrap().memory;
        memory.shared_bytes >= 900 * 4096 && memory.zero_bytes >= 900 * 4096
    });
    let guest = client.guest("g1").unwrap();
    assert_eq!((guest.pid, guest.connected), (std::process::id(), true));
    assert_eq!(guest.control.as_deref(), Some("/somewhere/ctl.sock"));
    assert_eq!(guest.domain.as_deref(), Some("test"));
    assert_eq!(
        (
            guest.limits.min_bytes,
            guest.limits.max_bytes,
            guest.limits.shares
        ),
        (4 * MIB, 16 * MIB, 1000)
    );
    let target = guest.target.unwrap();
    assert_eq!((target.bound.as_str(), target.size_bytes), ("maximum", 16 * MIB));
    assert!(
        target.explanation.starts_with("g1 should hold"),
        "{}",
        target.explanation
    );
    assert!(guest.held_bytes > 0 && guest.activity.fraction <= 1.0);

    let host = client.host().unwrap();
    assert_eq!(host.settings.budget_bytes, 256 * MIB);
    assert_eq!(
        (host.guests, host.promised_bytes, host.minimums_bytes),
        (1, 16 * MIB, 4 * MIB)
    );
    let domain = host.domains["test"];
    assert_eq!(
        (domain.guests, domain.pool_pages, domain.invalid_calls),
        (1, 16, 0)
    );
    assert!(host.spent.pools_bytes >= 16 * 4096 && host.spent.guests_bytes == guest.held_bytes);
    let spent = host.spent.guests_bytes + host.spent.pools_bytes + host.spent.manager_bytes;
    let left = host.settings.budget_bytes as i64 - spent as i64;
    assert!(
        (left - host.free_bytes.unwrap()).abs() < 16 * MIB as i64,
        "{host:?}"
    );

    let (status, balloon) = managed.request("GET", "/guests/g1/balloon/statistics", "");
    assert_eq!((status, &balloon["free_memory"]), (200, &(5 * MIB).into()));
    assert_eq!(
        (&balloon["target_mib"], &balloon["age_ms"]),
        (&0.into(), &500.into())
    );

    assert_eq!(client.direct("g1", "pause").unwrap().phase, Phase::Paused);
    assert_eq!(client.direct("g1", "resume").unwrap().phase, Phase::Running);
    let (status, stopping) = managed.request("POST", "/guests/g1/stop", "");
    assert_eq!((status, &stopping["phase"]), (202, &"stopping".into()));
    for expected in [Told::Pause(true), Told::Pause(false), Told::Stop] {
        assert_eq!(told.recv_timeout(Duration::from_secs(5)), Ok(expected));
    }
}

#[test]
fn limits_and_settings_change_while_guests_run_or_not_at_all() {
    let managed = Managed::new(256);
    let (_a, _b) = (managed.admit("a", 64), managed.admit("b", 64));
    let client = managed.client();
    let shares = GuestChange {
        shares: Some(2000),
        min_bytes: Some(32 * MIB),
    };
    let limits = client.change_guest("a", &shares).unwrap().limits;
    assert_eq!(
        (limits.shares, limits.min_bytes, limits.max_bytes),
        (2000, 32 * MIB, 64 * MIB)
    );
    assert_eq!(client.guest("b").unwrap().limits.shares, 1000);

    let change = HostChange {
        budget_bytes: Some(128 * MIB),
        tax_percent: Some(50.0),
        rebalance_seconds: Some(5.0),
    };
    let settings = client.change_host(&change).unwrap().settings;
    assert_eq!(
        (
            settings.budget_bytes,
            settings.tax_percent,
            settings.rebalance_seconds
        ),
        (128 * MIB, 50.0, 5.0)
    );

    let refused = |error: ClientError| match error {
        ClientError::Refused { status, error } => (status, error),
        other => panic!("{other:?}"),
    };
    let budget = |mib: u64| HostChange {
        budget_bytes: Some(mib * MIB),
        ..HostChange::default()
    };
    // 48 MiB are guaranteed.
    let (status, error) = refused(client.change_host(&budget(40)).unwrap_err());
    assert!(
        status == 409 && error.contains("promise") && error.contains("MiB"),
        "{error}"
    );
    let least = |min_bytes| GuestChange {
        min_bytes: Some(min_bytes),
        ..GuestChange::default()
    };
    let (status, error) = refused(client.change_guest("a", &least(65 * MIB)).unwrap_err());
    assert!(
        status == 409 && error.contains('a') && error.contains("max"),
        "{error}"
    );
    let none = GuestChange {
        shares: Some(0),
        ..GuestChange::default()
    };
    assert_eq!(refused(client.change_guest("a", &none).unwrap_err()).0, 409);
    assert_eq!(
        client.host().unwrap().settings,
        settings,
        "a refused change changed something"
    );
    assert_eq!(client.guest("a").unwrap().limits, limits);
}

#[test]
fn what_is_wrong_with_a_request_is_said_with_the_right_status() {
    let managed = Managed::new(256);
    let kept = managed.admit("g1", 64);
    let long = format!("{{\"tax_percent\": {}1}}", " ".repeat(20 << 10));
    let cases: &[(&str, &str, &str, u16, &str)] = &[
        ("GET", "/guests/nobody", "", 404, "no guest is called \"nobody\""),
        ("GET", "/guests/g1/balloon/statistics", "", 404, "no balloon"),
        ("GET", "/what", "", 404, "no GET /what"),
        ("DELETE", "/host", "", 405, "does not take DELETE"),
        ("PUT", "/host", "{", 400, "EOF"),
        ("PUT", "/host", "{\"tax\": 5}", 400, "unknown field `tax`"),
        ("PUT", "/host", "{\"tax_percent\": 100}", 400, "below 100"),
        (
            "PUT",
            "/host",
            "{\"rebalance_seconds\": 0}",
            400,
            "rebalance_seconds",
        ),
        ("PUT", "/host", "{\"budget_bytes\": -1}", 400, "-1"),
        ("PUT", "/host", &long, 413, "limit"),
        (
            "PATCH",
            "/guests/g1",
            "{\"max_bytes\": 5}",
            400,
            "unknown field `max_bytes`",
        ),
        ("PATCH", "/guests/nobody", "{}", 404, "nobody"),
        ("POST", "/guests/nobody/stop", "", 404, "nobody"),
    ];
    for (method, path, body, status, words) in cases {
        let (got, answer) = managed.request(method, path, body);
        let error = answer["error"].as_str().unwrap_or_default();
        assert_eq!(got, *status, "{method} {path}: {answer}");
        assert!(
            error.contains(words),
            "{method} {path}: {words:?} is not in {error:?}"
        );
    }
    drop(kept);
    until("the cut", || !managed.client().guest("g1").unwrap().connected);
    assert_eq!(managed.request("POST", "/guests/g1/pause", "").0, 503);
    assert_eq!(managed.raw(b"nonsense\r\n\r\n").0, 400);
}

#[test]
fn slow_and_broken_clients_harm_nobody() {
    let managed = Managed::new(256);
    let socket = api::socket_in(managed.dir.path());
    let open = |text: &[u8]| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(text).unwrap();
        stream
    };
    let silent: Vec<_> = (0..20).map(|_| open(b"")).collect();
    let half: Vec<_> = (0..20).map(|_| open(b"GET /host HT")).collect();
    let mut unsent = open(b"PUT /host HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n{");
    let began = Instant::now();
    assert_eq!(managed.request("GET", "/host", "").0, 200);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    for mut stream in silent.into_iter().chain(half) {
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
    unsent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    unsent.read_to_end(&mut Vec::new()).unwrap();
    // Two that wait for nothing: one leaves, one sends without end.
    drop(open(b"GET /host HTTP/1.1\r\nHost: x\r\n\r\n"));
    let mut flood = open(b"GET /host HTTP/1.1\r\n");
    let line = [b'x'; 64 << 10];
    while flood.write_all(&line).is_ok() {}
    assert_eq!(managed.request("GET", "/host", "").0, 200);
}

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
        (&["set", "g", "shares=lots"], 2, "low (500)"),
        (&["set", "g", "max=1G"], 2, "set when it is started"),
        (&["set", "tax=100"], 2, "below 100"),
        (&["set", "tax=1", "tax=2"], 2, "given twice"),
        (&["set", "shares=1"], 2, "name the guest first"),
        (&["set", "colour=red"], 2, "budget, tax and rebalance"),
        (&["set", "budget=8M"], 1, "promise"),
        (&["set", "nobody", "shares=1"], 1, "no guest is called"),
        (&["stats", "no/body"], 1, "no guest is called"),
        (&["stop", "nobody"], 1, "no guest is called"),
        (&["pause"], 2, "GUEST"),
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
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(api::socket_in(&run_dir)).unwrap().permissions(),
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
    assert!(left.is_empty(), "{left:?}");
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
    let _kept = (managed.admit("web-1", 64), managed.admit("other", 64));
    std::os::unix::fs::symlink(managed.dir.path(), dir.path().join("levy")).unwrap();
    let (status, text) = run(&["down", "--wait", "0s"]);
    assert_eq!(status, Some(0), "{text}");
    let phase = |name: &str| managed.client().guest(name).unwrap().phase;
    assert_eq!(
        (phase("web-1"), phase("other")),
        (Phase::Stopping, Phase::Running)
    );
}
