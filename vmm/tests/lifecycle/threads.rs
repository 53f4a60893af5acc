//! Threads that the system does not let a process start: too few of them, then one more, until there are enough.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use levy_launcher::api_client::Client;
use rustix::process::{Pid, Signal, kill_process};

use crate::{PATIENCE, kernel};

/// More threads than any of these processes starts.
const ENOUGH: u32 = 40;

/// A control group whose processes together may have so many threads; removed when this is dropped.
struct Crowd(PathBuf);

impl Crowd {
    /// A new group, or nothing, said aloud, where none with a limit of threads can be made.
    fn new(name: &str) -> Option<Self> {
        let name = format!("levy-test-{name}-{}", std::process::id());
        for parent in ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"] {
            // Of version 2: a group has what its parent hands on.
            let _ = fs::write(Path::new(parent).join("cgroup.subtree_control"), "+pids");
            let group = Self(Path::new(parent).join(&name));
            if fs::create_dir(&group.0).is_ok() && group.0.join("pids.max").exists() {
                return Some(group);
            }
        }
        eprintln!("skipped: no control group with the pids controller may be made here");
        None
    }

    /// `levy` with `args`, in this group, whose limit is `threads`; what it says goes to `log`.
    fn start(&self, threads: u32, args: &[&str], log: &Path) -> Child {
        fs::write(self.0.join("pids.max"), threads.to_string()).unwrap();
        let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", self.0.display());
        let mut command = Command::new("sh");
        command
            .args(["-c", &enter, "sh", env!("CARGO_BIN_EXE_levy")])
            .args(args)
            .current_dir(log.parent().unwrap())
            .env("XDG_RUNTIME_DIR", log.parent().unwrap())
            .env_remove("LEVY_RUN_DIR")
            .stdin(std::process::Stdio::null());
        let log = File::create(log).unwrap();
        command
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Killed when this is dropped.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    /// Whether it runs as it should, by `works`, or the status with which it has ended before.
    pub(crate) fn settles(&mut self, works: impl Fn() -> bool) -> Result<(), ExitStatus> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return Err(status);
            }
            if works() {
                return Ok(());
            }
            assert!(begin.elapsed() < PATIENCE, "it neither works nor ends");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn end(&mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        self.settles(|| false).unwrap_err()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The sockets below `dir`.
fn sockets(dir: &Path) -> Vec<PathBuf> {
    let entries = || -> io::Result<Vec<_>> { fs::read_dir(dir)?.collect() };
    let files = entries().unwrap().into_iter().flat_map(|entry| {
        let kind = std::os::unix::fs::FileTypeExt::is_socket;
        match entry.file_type().unwrap() {
            folder if folder.is_dir() => sockets(&entry.path()),
            file if kind(&file) => vec![entry.path()],
            _ => Vec::new(),
        }
    });
    files.collect()
}

/// Starts `levy` with `args` under every limit from one thread on, until it `works`. Before that it ends with status 1,
/// says which limit it was, and leaves no socket.
fn with_ever_more_threads(name: &str, dir: &Path, args: &[&str], works: impl Fn(&str) -> bool) {
    let Some(crowd) = Crowd::new(name) else { return };
    let log = dir.join("log");
    let before = sockets(dir);
    for threads in 1..ENOUGH {
        let mut process = Process(crowd.start(threads, args, &log));
        let said = || fs::read_to_string(&log).unwrap();
        match process.settles(|| works(&said())) {
            Ok(()) => {
                assert!(threads > 2, "it needs no threads: {}", said());
                assert_eq!(process.end().code(), Some(0), "{}", said());
                assert_eq!(sockets(dir), before);
                return println!("{threads} threads suffice");
            }
            Err(status) => {
                let said = said();
                assert_eq!(status.code(), Some(1), "{threads} threads: {said}");
                let limit = format!("the control group {threads} (pids.max)");
                assert!(said.contains(&limit), "{threads} threads: {said}");
                assert!(!said.contains("panicked"), "{threads} threads: {said}");
                assert_eq!(sockets(dir), before, "{threads} threads: {said}");
            }
        }
    }
    panic!("{ENOUGH} threads are too few");
}

#[test]
fn a_manager_that_may_not_start_its_threads_says_so_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::at(&dir.path().join("levy"));
    let args = ["host", "--budget", "300M", "--cgroup", "off"];
    with_ever_more_threads("host", dir.path(), &args, |said| {
        said.contains("managing") && client.host().is_ok()
    });
}

#[test]
fn a_guest_whose_process_may_not_start_its_threads_says_so_and_leaves_nothing() {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        eprintln!("skipped: no usable /dev/kvm on this machine");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    kernel::write(dir.path(), kernel::IDLE);
    let alone = [
        "vmm",
        "--kernel",
        "bzImage",
        "--memory",
        "64M",
        "--cpus",
        "2",
        "--kvm-checked",
        "--events",
        "json",
        "--serial",
        "null",
        "--control",
        "control",
        "--agent",
        "agent",
    ];
    let runs = |said: &str| said.contains("\"running\"");
    with_ever_more_threads("alone", dir.path(), &alone, runs);

    let run_dir = dir.path().join("levy");
    let log = dir.path().join("host.log");
    let mut host = Command::new(env!("CARGO_BIN_EXE_levy"));
    host.args(["host", "--budget", "300M", "--cgroup", "off"])
        .env("XDG_RUNTIME_DIR", dir.path())
        .stderr(File::create(&log).unwrap());
    let mut host = Process(host.spawn().unwrap());
    let client = Client::at(&run_dir);
    host.settles(|| client.host().is_ok()).unwrap();
    let managed = [&alone[..], &["--manager", run_dir.to_str().unwrap()]].concat();
    with_ever_more_threads("managed", dir.path(), &managed, runs);
    host.settles(|| client.guests().unwrap().is_empty()).unwrap();
    assert_eq!(host.end().code(), Some(0));
}

#[test]
fn a_doctor_that_may_not_start_a_thread_says_so() {
    let Some(crowd) = Crowd::new("doctor") else { return };
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut doctor = Process(crowd.start(1, &["doctor"], &log));
    let status = doctor.settles(|| false).unwrap_err();
    let said = fs::read_to_string(&log).unwrap();
    assert!(matches!(status.code(), Some(0..=2)), "{status} {said}");
    assert!(!said.contains("panicked"), "{said}");
}
