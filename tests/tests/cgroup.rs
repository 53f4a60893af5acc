//! The brake: guests of a launch are in a control group of their own whose `memory.high` is the budget.

use std::fs;
use std::path::PathBuf;

use levy_tests::{Lab, Launch};

#[test]
fn a_launch_brakes_its_guests_at_the_budget_and_leaves_no_group() {
    let Some(lab) = Lab::or_skip() else { return };
    // The nested host is booted with it mounted; a host of one's own may not have it.
    if !fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").is_ok_and(|names| names.contains("memory")) {
        println!("skipped: no control groups of version 2 with the memory controller at /sys/fs/cgroup");
        return;
    }
    let mut launch = Launch::start(&lab, &["--no-disk", "--budget", "300M"]);
    launch.ready();
    let group = group_of(launch.pid()).expect("a group named after the launcher");
    let read = |name: &str| fs::read_to_string(group.join(name)).unwrap().trim().to_owned();
    let guest = launch.guest();
    let own: Vec<_> = fs::read_dir(&group)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    assert_eq!(own.len(), 1, "a group for each guest: {own:?}");
    let of_guest = |name: &str| fs::read_to_string(own[0].join(name)).unwrap().trim().to_owned();
    assert_eq!(of_guest("cgroup.procs"), guest.pid.to_string());
    assert_eq!(
        (read("memory.high"), read("memory.max"), of_guest("memory.max")),
        ((300_u64 << 20).to_string(), "max".to_owned(), "max".to_owned())
    );
    // What it may hold at most is the budget, and the kernel's own tables for it.
    let high: u64 = of_guest("memory.high").parse().expect("it has a limit");
    assert!(((32 << 20)..=(330 << 20)).contains(&high), "{high}");
    launch.interrupt();
    launch.summary();
    let _ = launch.wait();
    assert!(!group.exists(), "{} is left", group.display());
}

/// The group named after the manager with this process number, below the group that the test is in.
fn group_of(pid: u32) -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let group = PathBuf::from("/sys/fs/cgroup")
        .join(path)
        .join(format!("levy-{pid}"));
    group.exists().then_some(group)
}
