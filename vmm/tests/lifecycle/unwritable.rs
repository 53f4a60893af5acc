//! Output that is not taken: the guest runs, is asked, and ends.

use std::fs::File;
use std::io::PipeReader;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use levy_protocol::control::{Client, Request};
use rustix::process::{Pid, Signal, kill_process};

use crate::{PATIENCE, kernel};

/// Where words get lost: a full disk, a pipe whose reader has gone, and one that is full and not read, with the end that
/// is to be kept.
fn unwritable() -> [(Stdio, Option<PipeReader>); 3] {
    let disk = File::options().write(true).open("/dev/full").unwrap();
    let (_, closed) = std::io::pipe().unwrap();
    let (unread, full) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&full, true).unwrap();
    while rustix::io::write(&full, &[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&full, false).unwrap();
    [
        (disk.into(), None),
        (closed.into(), None),
        (full.into(), Some(unread)),
    ]
}

/// Killed when this is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A guest whose kernel is `code` runs, is asked and ends; its process was started with the rest.
fn runs(code: &[u8], more: &[&str], [stdout, stderr]: [Stdio; 2]) {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        eprintln!("skipped: no usable /dev/kvm on this machine");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    kernel::write(dir.path(), code);
    let mut command = Command::new(env!("CARGO_BIN_EXE_levy"));
    command
        .args(["vmm", "--kernel", "bzImage", "--memory", "64M", "--kvm-checked"])
        .args(["--control", "control"])
        .args(more)
        .current_dir(dir.path());
    let mut vmm = Process(command.stdout(stdout).stderr(stderr).spawn().unwrap());
    let begin = Instant::now();
    let control = dir.path().join("control");
    let state = loop {
        assert_eq!(vmm.0.try_wait().unwrap(), None, "the VMM has ended");
        assert!(begin.elapsed() < PATIENCE, "the VMM does not answer");
        let client = Client::connect(&control, PATIENCE);
        match client.and_then(|mut client| client.ask(&Request::Status)) {
            Ok(status) => break status["state"].clone(),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert_eq!(state, "running");
    // It says that the guest was asked, and how it has ended.
    kill_process(Pid::from_child(&vmm.0), Signal::TERM).unwrap();
    let status = loop {
        match vmm.0.try_wait().unwrap() {
            Some(status) => break status,
            None if begin.elapsed() > PATIENCE => panic!("the VMM does not end"),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    assert_eq!(status.code(), Some(0));
}

#[test]
fn messages_and_reports() {
    for (stderr, _unread) in unwritable() {
        let more = ["--serial", "null", "--events", "text"];
        runs(kernel::IDLE, &more, [Stdio::null(), stderr]);
    }
    for (stdout, _unread) in unwritable() {
        let more = ["--serial", "null", "--events", "json"];
        runs(kernel::IDLE, &more, [stdout, Stdio::inherit()]);
    }
}

#[test]
fn the_console_of_a_guest_that_says_much() {
    for (stdout, _unread) in unwritable() {
        let more = ["--serial", "stdio", "--events", "text"];
        runs(kernel::TALKATIVE, &more, [stdout, Stdio::inherit()]);
    }
}
