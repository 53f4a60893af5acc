//! The device behind its transport, and what its pilot makes of a driver.

use std::sync::Mutex;
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::testing::{BUFFERS, Driver, desc};

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;

fn balloon() -> (Driver, Arc<GuestRam>, Arc<Mutex<Balloon>>) {
    let ram = Arc::new(GuestRam::new(crate::virtio::testing::MEMORY).unwrap());
    let config = BalloonConfig {
        bytes: 1 << 20,
        deflate_on_oom: true,
        free_page_reporting: true,
        ..BalloonConfig::default()
    };
    let balloon = Arc::new(Mutex::new(Balloon::new(&config, &ram).unwrap()));
    let driver = Driver::start_with(Arc::clone(&balloon) as _, Arc::clone(&ram));
    (driver, ram, balloon)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "waited for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn inflated_frames_go_back_to_the_host_through_the_guests_memory() {
    let (mut driver, ram, balloon) = balloon();
    until("the target of 1 MiB in frames", || driver.read(0x100) == 256);
    let frames = [600u32, 601, 602];
    for frame in frames {
        ram.view()
            .write_obj(7u64, GuestAddress(u64::from(frame) * 4096))
            .unwrap();
    }
    driver.put(BUFFERS, &frames.map(u32::to_le_bytes).concat());
    driver.describe(INFLATE, 0, &[desc(BUFFERS, 12, 0, 0)]);
    driver.complete(INFLATE, 0);
    assert_eq!(ram.released_pages(), 3);
    assert_eq!(driver.get(601 * 4096, 1), [0]);
    assert_eq!(balloon.lock().unwrap().picture().figures()["inflated_pages"], 3);
}

#[test]
fn whoever_manages_the_memory_hears_of_frames_that_leave_the_balloon() {
    let (mut driver, ram, _balloon) = balloon();
    let ranges = page_share::MemoryRange::all_of_vm_memory(ram.view()).unwrap();
    ram.manage(|| page_share::Region::adopt(ranges, page_share::Options::default()))
        .unwrap();
    let ballooned = || ram.manager().unwrap().stats().ballooned;
    driver.put(BUFFERS, &[600u32, 601, 602].map(u32::to_le_bytes).concat());
    driver.describe(INFLATE, 0, &[desc(BUFFERS, 12, 0, 0)]);
    driver.complete(INFLATE, 0);
    assert_eq!(ballooned(), 3);
    driver.put(BUFFERS, &601u32.to_le_bytes());
    driver.describe(DEFLATE, 0, &[desc(BUFFERS, 4, 0, 0)]);
    driver.complete(DEFLATE, 0);
    assert_eq!(ballooned(), 2);
    driver.write(0x70, 0);
    assert_eq!(ballooned(), 0, "a reset pops the balloon");
}

#[test]
fn a_new_target_interrupts_the_guest() {
    let (driver, _ram, balloon) = balloon();
    let change = Change {
        amount_mib: Some(0),
        ..Change::default()
    };
    until("a first target", || driver.read(0x100) == 256);
    driver.write(0x64, 2);
    assert_eq!(driver.read(0x60) & 2, 0);
    balloon.lock().unwrap().change(change).unwrap();
    until("the new target", || driver.read(0x100) == 0);
    assert_eq!(driver.read(0x60) & 2, 2);
}

#[test]
fn broken_rings_stop_the_balloon_until_its_reset() {
    let (mut driver, _ram, balloon) = balloon();
    for (times, bad) in (1..).zip([crate::virtio::testing::SIZE + 1, u16::MAX]) {
        driver.bring_up();
        driver.jump(INFLATE, bad);
        driver.kick(INFLATE);
        driver.expect_needs_reset(times);
    }
    driver.bring_up();
    assert!(!driver.needs_reset());
    assert_eq!(balloon.lock().unwrap().picture().figures()["broken_rings"], 2);
}

#[test]
fn the_larger_wish_of_owner_and_manager_counts() {
    let (driver, _ram, balloon) = balloon();
    let target = |frames| until("a target", || driver.read(0x100) == frames);
    target(256);
    BalloonHandle::to(&balloon).order(100);
    assert_eq!(balloon.lock().unwrap().picture().figures()["goal_mib"], 1);
    let none = Change {
        amount_mib: Some(0),
        ..Change::default()
    };
    balloon.lock().unwrap().change(none).unwrap();
    target(100);
    BalloonHandle::to(&balloon).order(0);
    target(0);
}

#[test]
fn changes_that_cannot_be_are_refused_whole() {
    let (_driver, _ram, balloon) = balloon();
    let mut balloon = balloon.lock().unwrap();
    let have = crate::virtio::testing::MEMORY >> 20;
    let amount = |mib| Change {
        amount_mib: Some(mib),
        ..Change::default()
    };
    let error = balloon.change(amount(have + 1)).unwrap_err();
    let asked = have + 1;
    assert_eq!(error, ChangeError::Amount { asked, have });
    for (deflate_on_oom, seconds, error) in [
        (Some(false), None, ChangeError::DeflateOnOom(false)),
        (None, Some(0), ChangeError::Polling(0)),
        (Some(true), Some(3601), ChangeError::Polling(3601)),
    ] {
        let change = Change {
            amount_mib: Some(0),
            deflate_on_oom,
            stats_polling_interval_s: seconds,
        };
        assert_eq!(balloon.change(change), Err(error));
    }
    assert_eq!(
        balloon.picture().figures()["amount_mib"],
        1,
        "nothing of it was done"
    );
    let change = Change {
        deflate_on_oom: Some(true),
        stats_polling_interval_s: Some(7),
        ..Change::default()
    };
    balloon.change(change).unwrap();
    assert_eq!(balloon.picture().figures()["stats_polling_interval_s"], 7.0);
}

#[test]
fn a_device_without_its_driver_is_unresponsive_and_asks_for_nothing() {
    let (mut driver, _ram, balloon) = balloon();
    let unresponsive = || balloon.lock().unwrap().picture().report().unresponsive;
    until("a driver at work", || !unresponsive());
    driver.write(0x70, 0);
    assert!(unresponsive());
    assert_eq!(driver.read(0x100), 0);
    assert_eq!(
        balloon.lock().unwrap().picture().figures()["controller"]["state"],
        "absent"
    );
    driver.bring_up();
    until("a new attempt", || driver.read(0x100) == 256 && !unresponsive());
}

#[test]
fn a_guest_that_keeps_its_balloon_at_work_holds_none_who_asks_or_orders() {
    let (_driver, _ram, balloon) = balloon();
    let handle = BalloonHandle::to(&balloon);
    let held = balloon.lock().unwrap();
    handle.order(512);
    assert_eq!(handle.picture().figures()["goal_mib"], 2);
    assert_eq!(handle.change(Change::default()).unwrap().figures()["goal_mib"], 2);
    let change = Change {
        amount_mib: Some(1),
        ..Change::default()
    };
    assert_eq!(handle.change(change).err(), Some(ChangeError::Busy));
    drop(held);
}
