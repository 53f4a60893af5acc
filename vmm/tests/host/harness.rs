//! A manager in this process, guests' engines in this process, and raw HTTP from clients good and bad.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use allocator::Pages;
use levy_launcher::api_client::Client;
use levy_machine::memory::GuestRam;
use levy_manager::api::{self, Server};
use levy_manager::host::Host;
use levy_manager::policy::Settings;
use levy_member::{Duties, Introduction, ManagedMemory, ManagerClient};
use levy_protocol::link::{BalloonReport, Hello, Sharing};
use levy_protocol::run_dir::Sockets;
use page_share::Region;
use serde_json::Value;
use vm_memory::{Bytes, GuestAddress};

pub(crate) const MIB: u64 = 1 << 20;

/// No wait is longer, on busy machines neither; one that gets there is a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// What a guest's process was told to do besides its memory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Stop,
    Pause(bool),
}

/// Notes what it is told, and does it as far as there is anything to do.
struct Notes {
    told: Sender<Told>,
    balloon: AtomicU64,
    paused: AtomicBool,
}

impl Duties for Notes {
    fn balloon(&mut self, pages: u64) {
        self.balloon.store(pages, Ordering::SeqCst);
    }

    fn balloon_report(&self) -> Option<BalloonReport> {
        let pages = self.balloon.load(Ordering::SeqCst);
        Some(BalloonReport {
            target_pages: pages,
            actual_pages: pages,
            statistics: [("free_memory".to_owned(), 5 * MIB)].into(),
            statistics_age_seconds: Some(0.5),
            ..BalloonReport::default()
        })
    }

    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    fn is_up(&self) -> bool {
        true
    }

    fn stop(&mut self) {
        let _ = self.told.send(Told::Stop);
    }

    fn pause(&mut self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
        let _ = self.told.send(Told::Pause(paused));
    }
}

/// A guest's engine and memory.
pub(crate) struct Engaged {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) region: Arc<Region>,
    pub(crate) told: Receiver<Told>,
}

/// Pages of the guest that [`Managed::attend`] makes: of this many contents each, zeros, and in all.
pub(crate) const CONTENT_PAGES: u64 = 1024;
pub(crate) const CONTENTS: u64 = 16;
pub(crate) const TOUCHED_PAGES: u64 = 2048;

/// A manager with its API, gone when this is dropped.
pub(crate) struct Managed {
    pub(crate) host: Host,
    _api: Server,
    pub(crate) dir: tempfile::TempDir,
}

impl Drop for Managed {
    fn drop(&mut self) {
        self.host.close();
    }
}

impl Managed {
    pub(crate) fn new(mib: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings::new(Pages::from_mib(mib));
        let host = Host::open(Sockets::in_dir(dir.path()), settings, Pages::from_mib(4096)).unwrap();
        // Those of a test are all in this process.
        host.allow_several_in_one_process();
        let running = host.clone();
        std::thread::spawn(move || running.run());
        let api = api::serve(host.clone(), dir.path()).unwrap();
        Self { host, _api: api, dir }
    }

    pub(crate) fn client(&self) -> Client {
        Client::at(self.dir.path())
    }

    /// Admits a guest of which nothing will be heard; cut off when the answer is dropped.
    pub(crate) fn admit(&self, name: &str, mib: u64) -> Introduction {
        let sharing = Sharing::Off;
        self.introduce(Hello {
            sharing,
            ..hello(name, mib)
        })
    }

    pub(crate) fn introduce(&self, hello: Hello) -> Introduction {
        Introduction::make(self.dir.path(), hello).unwrap()
    }

    /// A guest of 16 MiB with an engine: 1024 pages of 16 contents, 1024 of zeros, the rest never touched.
    pub(crate) fn attend(&self, name: &str) -> Engaged {
        self.attend_as(hello(name, 16))
    }

    /// The same with another introduction, whose size it has.
    pub(crate) fn attend_as(&self, hello: Hello) -> Engaged {
        let ram = Arc::new(GuestRam::new(hello.size).unwrap());
        for page in 0..TOUCHED_PAGES {
            let mut bytes = [0_u8; 4096];
            bytes[..8].copy_from_slice(&content(page).to_le_bytes());
            ram.view().write_slice(&bytes, GuestAddress(page * 4096)).unwrap();
        }
        let managed = ManagedMemory::start(&ram, None).unwrap();
        let region = Arc::clone(managed.region());
        let (told, heard) = channel();
        let notes = Notes {
            told,
            balloon: AtomicU64::default(),
            paused: AtomicBool::default(),
        };
        ManagerClient::start(self.introduce(hello), managed, Box::new(notes)).unwrap();
        Engaged {
            ram,
            region,
            told: heard,
        }
    }

    /// Waits for this many more reports, of all guests together.
    pub(crate) fn until_reports(&self, more: u64) {
        let reports = || self.client().host().unwrap().doors.reports;
        let enough = reports() + more;
        until("reports", || reports() >= enough);
    }

    /// Sends `text` as it is and returns the answer's status and body.
    pub(crate) fn raw(&self, text: &[u8]) -> (u16, Value) {
        let mut stream = UnixStream::connect(levy_protocol::run_dir::api_socket(self.dir.path())).unwrap();
        stream.write_all(text).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        let text =
            format!("{method} {path} HTTP/1.1\r\nHost: levy\r\nContent-Length: {length}\r\n\r\n{body}");
        self.raw(text.as_bytes())
    }

    /// Runs `levy` with `args` against this manager.
    pub(crate) fn levy(&self, args: &[&str]) -> Output {
        let mut command = levy_command(self.dir.path());
        command.args(args).arg("--run-dir").arg(self.dir.path());
        command.output().unwrap()
    }

    pub(crate) fn levy_json(&self, args: &[&str]) -> Value {
        let output = self.levy(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// `levy` that finds nothing but what is in `dir`.
pub(crate) fn levy_command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_levy"));
    command
        .env("XDG_RUNTIME_DIR", dir)
        .env("TMPDIR", dir)
        .env_remove("LEVY_RUN_DIR");
    command
}

impl Engaged {
    /// Reads all of the memory back.
    pub(crate) fn check(&self) {
        for page in 0..TOUCHED_PAGES {
            let mut bytes = [0_u8; 4096];
            let at = GuestAddress(page * 4096);
            self.ram.view().read_slice(&mut bytes, at).unwrap();
            let (word, rest) = bytes.split_at(8);
            assert_eq!(word, content(page).to_le_bytes(), "page {page}");
            assert!(rest.iter().all(|&byte| byte == 0), "page {page}");
        }
    }
}

fn content(page: u64) -> u64 {
    if page < CONTENT_PAGES {
        page % CONTENTS + 1
    } else {
        0
    }
}

pub(crate) fn hello(name: &str, mib: u64) -> Hello {
    Hello {
        control: Some("/somewhere/ctl.sock".into()),
        ..Hello::new(name, mib * MIB)
            .with_min(mib * MIB / 4)
            .in_domain("test")
    }
}

pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(
            began.elapsed() < PATIENCE,
            "{what} did not happen within {} s",
            PATIENCE.as_secs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
