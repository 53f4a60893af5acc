//! The ends of a guest: off, restart, panic, hang, Ctrl-C. Each has its own exit status and leaves nothing behind.

use std::path::Path;

use guest_images::agent_protocol::Action;
use levy_tests::{Lab, Launch, NOTHING, files_in, until};

#[test]
fn a_guest_boots_to_ready_and_switches_itself_off() {
    let Some(lab) = Lab::or_skip() else { return };
    let mut guest = lab.guest("off").start();
    guest.ready();
    let ended = guest.power_off();
    assert_eq!(ended.status, 0, "{ended:?}");
}

#[test]
fn an_unpacked_kernel_boots_where_it_was_linked() {
    let Some(lab) = Lab::or_skip() else { return };
    let Some(vmlinux) = lab.boot().vmlinux() else {
        println!("skipped: these images have no vmlinux: `levy images` builds them anew");
        return;
    };
    let manager = lab.manager(1024);
    let alone = lab.guest("alone").kernel(&vmlinux);
    let managed = lab.guest("managed").kernel(&vmlinux).managed_by(&manager);
    for mut guest in [alone.start(), managed.start()] {
        guest.ready();
        let code = guest.exec(&["grep", "Kernel code", "/proc/iomem"]);
        assert!(code.trim().starts_with("01000000-"), "{code}");
        let release = guest.exec(&["cat", "/proc/sys/kernel/osrelease"]);
        assert_eq!(release.trim(), lab.boot().release());
        assert_eq!(guest.power_off().status, 0);
    }
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
    guest.running();
    guest.interrupt();
    let ended = guest.end();
    assert!(ended.message.contains("guest"), "{ended:?}");
}

#[test]
fn a_launch_outlives_a_killed_guest_and_ctrl_c_leaves_nothing_of_either() {
    let Some(lab) = Lab::or_skip() else { return };
    let mut launch = Launch::start(&lab, &["--count", "2", "--no-disk"]);
    launch.ready();
    launch.ready();
    let guests = launch.guests();
    let pids: Vec<_> = guests.iter().map(|guest| guest.pid).collect();
    assert_eq!(pids.len(), 2, "{guests:?}");
    let control = guests[0].control.clone().unwrap();
    assert!(Path::new(&control).exists());
    let pid = rustix::process::Pid::from_raw(pids[0].cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until("the end of the dead guest's sockets", || {
        !Path::new(&control).exists() && launch.guests().len() == 1
    });
    let left = launch.guest();
    assert_eq!((left.pid, left.connected), (pids[1], true));
    launch.interrupt();
    let summary = launch.summary();
    let [dead, left] = summary.guests.as_slice() else {
        panic!("{summary:?}")
    };
    assert_eq!(dead.name, guests[0].name, "{summary:?}");
    assert!(dead.message.contains("SIGKILL"), "{summary:?}");
    assert_eq!(left.status, 0, "{summary:?}");
    assert_eq!(launch.wait(), Some(130));
    let alive: Vec<_> = pids
        .iter()
        .filter(|pid| Path::new(&format!("/proc/{pid}")).exists())
        .collect();
    assert!(alive.is_empty(), "processes left: {alive:?}");
    assert_eq!(files_in(launch.dir()), NOTHING);
}
