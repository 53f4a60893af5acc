//! A VMM process from the outside: asked, paused, stopped, abandoned. The guest is a kernel of one instruction, which
//! any KVM runs.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use levy_launcher::{OneGuest, SessionFiles};
use levy_protocol::control::{Client, ClientError, Request};
use rustix::process::Signal;
use serde_json::Value;

#[path = "../bzimage/mod.rs"]
mod bzimage;
mod kernel;
mod stopping;
mod threads;
mod unwritable;

const PATIENCE: Duration = Duration::from_secs(300);

/// A folder of a test's own; none, saying so, where this machine runs no guest.
fn folder_where_guests_run() -> Option<tempfile::TempDir> {
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    if kvm.is_err() {
        eprintln!("skipped: no usable /dev/kvm on this machine");
        return None;
    }
    Some(tempfile::tempdir().unwrap())
}

fn balloon_of(mib: u64) -> Request {
    Request::Balloon {
        amount_mib: Some(mib),
        deflate_on_oom: None,
        stats_polling_interval_s: None,
    }
}

struct Vmm {
    guest: OneGuest,
    dir: tempfile::TempDir,
}

impl Vmm {
    /// A running guest of two vCPUs, or nothing, said aloud, where there is no KVM.
    fn start(more: &[&str]) -> Option<Self> {
        Self::start_with(kernel::IDLE, more)
    }

    fn start_with(code: &[u8], more: &[&str]) -> Option<Self> {
        Self::start_kernel(|dir| kernel::write(dir, code), more)
    }

    /// The same with a kernel that `write` puts into a folder.
    fn start_kernel(write: impl FnOnce(&Path), more: &[&str]) -> Option<Self> {
        let dir = folder_where_guests_run()?;
        write(dir.path());
        let mut command = Command::new(env!("CARGO_BIN_EXE_levy"));
        command
            .args(["vmm", "--kernel", "bzImage", "--cpus", "2", "--kvm-checked"])
            .args(more)
            .current_dir(dir.path());
        if !more.contains(&"--memory") {
            command.args(["--memory", "64M"]);
        }
        let mut guest = OneGuest::start(command, SessionFiles::numbered(dir.path(), 0)).unwrap();
        guest.running(PATIENCE).unwrap();
        Some(Self { guest, dir })
    }

    fn try_ask(&self, request: &Request) -> Result<Value, ClientError> {
        self.guest.ask_within(PATIENCE, request)
    }

    fn ask(&self, request: &Request) -> Value {
        self.try_ask(request).unwrap()
    }

    fn signal(&self, signal: Signal) {
        self.guest.signal(signal).unwrap();
    }

    /// Waits for the process; its status. Nothing but the kernel and the console is left then.
    fn end(mut self) -> Option<i32> {
        let status = self.guest.end(PATIENCE).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["0.log", "bzImage"]);
        status.code()
    }
}

#[test]
fn a_guest_pauses_at_once_every_time_and_goes_on() {
    let Some(vmm) = Vmm::start(&[]) else { return };
    // A kick that is lost would make one of these wait for ever; two hundred meet every place to lose it.
    for _ in 0..200 {
        assert_eq!(vmm.ask(&Request::Pause)["state"], "paused");
        assert_eq!(vmm.ask(&Request::Resume)["state"], "running");
    }
    vmm.ask(&Request::Pause);
    assert_eq!(vmm.ask(&Request::Status)["state"], "paused");
    let vcpus = vmm.ask(&Request::Registers)["vcpus"].clone();
    assert_eq!(vcpus[0]["rip"], 0x10_0200);
    assert_eq!(vcpus.as_array().unwrap().len(), 2);
    vmm.ask(&Request::Stop { grace_ms: 0 });
    assert_eq!(vmm.end(), Some(0));
}

#[test]
fn figures_tell_guest_and_vmm_apart() {
    let Some(vmm) = Vmm::start(&["--balloon", "size=8M"]) else {
        return;
    };
    let stats = vmm.ask(&Request::Stats);
    assert_eq!(stats["memory"]["guest_kib"], 64 << 10);
    let touched = stats["memory"]["guest_rss_kib"].as_u64().unwrap();
    // What it boots with lies in the first 2 MiB, which may be one huge page.
    assert!(
        (4..=2048).contains(&touched),
        "an idle guest of one page touches little: {touched} KiB"
    );
    assert!(stats["memory"]["vmm_private_kib"].as_u64().unwrap() > 0);
    assert_eq!(stats["balloon"]["amount_mib"], 8);
    let balloon = vmm.ask(&balloon_of(16));
    assert_eq!(balloon["amount_mib"], 16);
    // No driver will ever run here.
    assert_eq!(balloon["controller"]["state"], "absent");
    assert_eq!(balloon["unresponsive"], true);
    let statistics = vmm.ask(&Request::BalloonStatistics);
    assert_eq!(
        (&statistics["actual_pages"], &statistics["target_pages"]),
        (&0.into(), &0.into())
    );
    let refused = vmm.try_ask(&balloon_of(65));
    assert!(refused.unwrap_err().to_string().contains("this guest has 64 MiB"));
    vmm.signal(Signal::TERM);
    assert_eq!(vmm.end(), Some(0));
}

/// Whether the kernel was asked for huge pages in the guest memory of process `pid`, its largest mapping.
fn prefers_huge_pages(pid: u32) -> bool {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let guest_kib = (64 << 10).to_string();
    let mut is_guest = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Size:") => is_guest = words.next() == Some(guest_kib.as_str()),
            Some("VmFlags:") if is_guest => return words.any(|flag| flag == "hg"),
            _ => {}
        }
    }
    panic!("no mapping of 64 MiB: {smaps}");
}

#[test]
fn guest_memory_is_of_huge_pages_unless_the_kernel_is_to_merge_small_ones() {
    if !Path::new("/sys/kernel/mm/transparent_hugepage").exists() || !rustix::process::geteuid().is_root() {
        println!("skipped: this needs a kernel with transparent huge pages, and root to look");
        return;
    }
    let merged = ["--memory", "64M,mergeable=on", "--sharing", "mode=off"];
    for (more, expected) in [(&[][..], true), (&merged, false)] {
        let Some(vmm) = Vmm::start(more) else { return };
        assert_eq!(prefers_huge_pages(vmm.guest.pid()), expected, "{more:?}");
        vmm.ask(&Request::Stop { grace_ms: 0 });
        assert_eq!(vmm.end(), Some(0));
    }
}

#[test]
fn a_vmlinux_is_entered_where_it_says_with_boot_params_in_rsi() {
    let Some(vmm) = Vmm::start_kernel(kernel::write_vmlinux, &[]) else {
        return;
    };
    let began = std::time::Instant::now();
    // It is written by a thread of its own.
    while std::fs::read(vmm.dir.path().join("0.log")).unwrap() != b"k" {
        assert!(began.elapsed() < PATIENCE, "{}", vmm.ask(&Request::Registers));
        std::thread::sleep(Duration::from_millis(5));
    }
    let rip = vmm.ask(&Request::Registers)["vcpus"][0]["rip"].as_u64().unwrap();
    let end = kernel::VMLINUX_ENTRY + 0x20;
    assert!((kernel::VMLINUX_ENTRY..end).contains(&rip), "{rip:#x}");
    vmm.ask(&Request::Stop { grace_ms: 0 });
    assert_eq!(vmm.end(), Some(0));
}

#[test]
fn requests_that_make_no_sense_are_answered() {
    let Some(vmm) = Vmm::start(&[]) else { return };
    let mut raw = std::os::unix::net::UnixStream::connect(&vmm.guest.files().control).unwrap();
    std::io::Write::write_all(&mut raw, b"{\"do\":\"explode\"}\n[]\n\xFF\n").unwrap();
    let answers: Vec<_> = BufReader::new(raw).lines().take(3).map(Result::unwrap).collect();
    assert!(answers.iter().all(|a| a.starts_with("{\"error\"")), "{answers:?}");
    assert!(answers[0].contains("explode"));
    vmm.signal(Signal::INT);
    assert_eq!(vmm.end(), Some(0));
}

#[test]
fn giving_up_on_a_guest_says_what_it_did_instead() {
    let Some(vmm) = Vmm::start(&[]) else { return };
    let answer = vmm.ask(&Request::GiveUp {
        because: "no verdict in time".into(),
    });
    let message = answer["message"].as_str().unwrap().to_owned();
    assert!(
        message.contains("no verdict in time; its agent never spoke; vCPU 0: rip 0x100200"),
        "{message}"
    );
    assert_eq!(vmm.end(), Some(5));
}

/// Tells a child of the test process which socket to ask at.
const ORDER: &str = "LEVY_INTRUDER_TEST";

/// Not a test of its own: a neighbour's process, which its guest has taken over.
#[test]
fn in_a_child() {
    let Some(control) = std::env::var_os(ORDER) else {
        return;
    };
    levy_protocol::mark::put_on_this_process().unwrap();
    let client = Client::connect(Path::new(&control), PATIENCE);
    let answer = client.and_then(|mut client| client.ask(&Request::Stop { grace_ms: 0 }));
    println!("answer: {answer:?}");
}

#[test]
fn a_vmm_is_marked_and_takes_no_requests_from_its_like() {
    let Some(vmm) = Vmm::start(&[]) else { return };
    assert_eq!(levy_protocol::mark::is_on(vmm.guest.pid()), Some(true));
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "in_a_child", "--nocapture"])
        .env(ORDER, &vmm.guest.files().control)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(text.contains("answer: Err"), "{child:?}");
    assert_eq!(vmm.ask(&Request::Status)["state"], "running");
    vmm.ask(&Request::Stop { grace_ms: 0 });
    assert_eq!(vmm.end(), Some(0));
}
