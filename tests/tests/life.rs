//! The ends of a guest: off, restart, panic, hang, Ctrl-C. Each has its own exit status and leaves nothing behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use guest_images::agent_protocol::Action;
use levy_tests::Lab;

#[test]
fn a_guest_boots_to_ready_and_switches_itself_off() {
    let Some(lab) = Lab::or_skip() else { return };
    let mut guest = lab.guest("off").start();
    guest.ready();
    let ended = guest.power_off();
    assert_eq!(ended.status, 0, "{ended:?}");
}

#[test]
fn two_vcpus_and_memory_above_the_hole_are_there() {
    let Some(lab) = Lab::or_skip() else { return };
    let mut guest = lab.guest("big").cpus(2).memory_mib(3584).start();
    guest.ready();
    let cpus = guest.exec(&["cat", "/sys/devices/system/cpu/online"]);
    assert_eq!(cpus.trim(), "0-1");
    let total = guest.ask(Action::Meminfo)["MemTotal"].as_u64().unwrap();
    assert!(total > 3_300_000, "{total} kB of 3584 MiB");
    assert_eq!(guest.power_off().status, 0);
}

#[test]
fn a_restart_is_told_from_an_end() {
    let Some(lab) = Lab::or_skip() else { return };
    let mut guest = lab.guest("restart").start();
    guest.ready();
    guest.command(Action::Reboot);
    let ended = guest.end();
    assert_eq!(ended.status, 3, "{ended:?}");
}

#[test]
fn a_panic_is_told_with_the_kernels_words() {
    let Some(lab) = Lab::or_skip() else { return };
    let mut guest = lab.guest("panic").in_trouble().start();
    guest.ready();
    guest.command(Action::Panic);
    let ended = guest.end();
    assert_eq!(ended.status, 4, "{ended:?}");
    assert!(ended.message.contains("panic"), "{ended:?}");
}

#[test]
fn a_guest_that_never_becomes_ready_hangs() {
    let Some(lab) = Lab::or_skip() else { return };
    // `cat` as the first process waits for the console for ever.
    let guest = lab
        .guest("hang")
        .deadline_seconds(15)
        .kernel_words("rdinit=/bin/cat")
        .start();
    let ended = guest.end();
    assert_eq!(ended.status, 5, "{ended:?}");
    assert!(ended.message.contains("15"), "the deadline is named: {ended:?}");
}

#[test]
fn ctrl_c_ends_a_guest_and_leaves_no_socket() {
    let Some(lab) = Lab::or_skip() else { return };
    let mut guest = lab.guest("interrupted").start();
    guest.ready();
    let agent = guest.path("agent");
    assert!(agent.exists());
    guest.interrupt();
    let ended = guest.end();
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(!agent.exists());
}

#[test]
fn ctrl_c_during_boot_ends_a_guest_too() {
    let Some(lab) = Lab::or_skip() else { return };
    let mut guest = lab.guest("early").start();
    guest.connected();
    guest.interrupt();
    let ended = guest.end();
    assert!(ended.message.contains("guest"), "{ended:?}");
}

#[test]
fn ctrl_c_on_a_launch_ends_every_guest_and_leaves_nothing() {
    let Some(lab) = Lab::or_skip() else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut launch = Command::new(lab.levy())
        .args([
            "run",
            "--count",
            "2",
            "--no-disk",
            "--json",
            "--memory",
            "size=256M",
        ])
        .env("XDG_RUNTIME_DIR", directory.path())
        .env("TMPDIR", directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(launch.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let ready = |line: &String| line.contains(r#""state":"ready""#);
    assert_eq!(
        lines.by_ref().filter(ready).take(2).count(),
        2,
        "both guests become ready"
    );
    let guests = children_of(launch.id());
    assert!(guests.len() >= 2, "{guests:?}");
    let pid = rustix::process::Pid::from_child(&launch);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let summary = lines.last().unwrap();
    assert!(summary.contains("summary"), "{summary}");
    assert_eq!(launch.wait().unwrap().code(), Some(130));
    let alive: Vec<_> = guests
        .iter()
        .filter(|pid| Path::new(&format!("/proc/{pid}")).exists())
        .collect();
    assert!(alive.is_empty(), "processes left: {alive:?}");
    let left: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(left.is_empty(), "files left: {left:?}");
}

/// The processes whose parent is `parent`.
fn children_of(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let listed = fs::read_to_string(path).unwrap_or_default();
    listed
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}
