//! Guests that come and go leave nothing: no file, no descriptor, no page, no memory of the manager's or of the host's.

use levy_protocol::control::Request;
use levy_tests::{Footprint, Guest, Lab, Manager, SmallDisk, files_in, turn, until};

/// Memory that a manager may have more after fifty guests, KiB: allocators keep some.
const SLACK_KIB: u64 = 6 * 1024;

/// Memory that the host may have less, MiB: kernels keep some too. It is what one guest has; there are fifty of them.
const HOST_SLACK_MIB: u64 = 128;

/// What is there while no guest is.
#[derive(Debug)]
struct Left {
    footprint: Footprint,
    files: Vec<String>,
    disk_kib: u64,
    available_mib: u64,
}

fn left(manager: &Manager, disk: &SmallDisk) -> Left {
    until("an empty house", || manager.view().guests == 0);
    // Threads and connections of the last ones end a moment after their guests.
    until("few threads", || manager.footprint().threads <= 8);
    Left {
        footprint: manager.footprint(),
        files: files_in(manager.dir()),
        disk_kib: disk.used_kib(),
        available_mib: available_mib(),
    }
}

fn available_mib() -> u64 {
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.expect("the kernel tells") >> 10
}

/// How a guest goes.
#[derive(Clone, Copy)]
enum Exit {
    PowerOff,
    Stop,
    CtrlC,
    Kill,
}

fn end(manager: &Manager, name: &str, mut guest: Guest, exit: Exit) {
    let status = match exit {
        Exit::PowerOff => guest.power_off().status,
        Exit::Stop => {
            manager.client().direct(name, "stop").unwrap();
            guest.end().status
        }
        Exit::CtrlC => {
            guest.interrupt();
            guest.end().status
        }
        Exit::Kill => {
            guest.kill();
            0
        }
    };
    assert_eq!(status, 0, "{name}");
}

/// Two guests that share pages with each other and write to their disks, from their boots to their ends.
fn round(lab: &Lab, manager: &Manager, disk: &SmallDisk, number: usize) {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(4 << 20).unwrap();
    let start = |name: &str| {
        let plan = lab.guest(name).memory_mib(128).managed_by(manager);
        plan.swapping_to(disk.path())
            .over_image(image.path(), disk.path())
            .start()
    };
    let names = ["a", "b"].map(|letter| format!("guest-{number}{letter}"));
    let mut guests = names.each_ref().map(|name| start(name));
    for guest in &mut guests {
        guest.ready();
        guest.exec(&[
            "busybox",
            "dd",
            "if=/dev/urandom",
            "of=/dev/vda",
            "bs=64k",
            "count=8",
        ]);
    }
    for guest in &guests {
        guest.vmm_until("merged pages", &Request::Stats, |stats| {
            stats["pages"]["merged"].as_u64() > Some(500)
        });
    }
    let exits = match number % 2 {
        0 => [Exit::PowerOff, Exit::Kill],
        _ => [Exit::CtrlC, Exit::Stop],
    };
    for ((name, guest), exit) in names.iter().zip(guests).zip(exits) {
        end(manager, name, guest, exit);
    }
}

#[test]
#[ignore = "ten minutes on an emulated host"]
fn fifty_guests_in_a_row_leave_nothing() {
    let Some(lab) = Lab::or_skip() else { return };
    let Some(disk) = SmallDisk::or_skip(320) else {
        return;
    };
    let _turn = turn();
    let manager = lab.manager(1024);
    (0..2).for_each(|number| round(&lab, &manager, &disk, number));
    let before = left(&manager, &disk);
    (2..27).for_each(|number| round(&lab, &manager, &disk, number));
    until("as few descriptors as before", || {
        manager.footprint().fds <= before.footprint.fds
    });
    let after = left(&manager, &disk);
    println!("{before:?}\n{after:?}");
    assert_eq!(after.files, before.files);
    assert_eq!((before.disk_kib, after.disk_kib), (0, 0), "layers and swap files");
    assert!(after.footprint.threads <= before.footprint.threads + 1);
    assert!(after.footprint.anonymous_kib <= before.footprint.anonymous_kib + SLACK_KIB);
    assert!(after.available_mib + HOST_SLACK_MIB >= before.available_mib);
    let view = manager.view();
    assert!(view.domains.is_empty() && view.spent.pools_bytes == 0, "{view:?}");
}
