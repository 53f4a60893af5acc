//! Too little memory, too little disk: said clearly, and no page is lost.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use levy_launcher::api_client::ClientError;
use levy_machine::memory::GuestRam;
use levy_machine::virtio::blk::{Disk, OverlayDisk};
use levy_member::ManagedMemory;
use levy_protocol::api::{HostChange, WaitingView};
use page_share::{Gfn, PageRun};
use simulated::{Guest, GuestOptions, Manager, SmallDisk, until};
use vm_memory::{Bytes, GuestAddress};

const PROGRAM: &str = env!("CARGO_BIN_EXE_simulated");

const MIB: u64 = 1 << 20;

fn budget(mib: u64) -> HostChange {
    HostChange {
        budget_bytes: Some(mib * MIB),
        ..HostChange::default()
    }
}

fn guests(manager: &Manager, count: u64) -> Vec<Guest> {
    (1..=count)
        .map(|number| {
            let options = GuestOptions::new(&format!("g{number}"))
                .seed(number)
                .mib(48)
                .all_different();
            Guest::start(Path::new(PROGRAM), manager.dir(), options.rate(500))
        })
        .collect()
}

#[test]
fn a_budget_that_is_halved_is_held_again_soon_and_every_page_is_right() {
    let manager = Manager::start(Path::new(PROGRAM), 1024);
    let mut guests = guests(&manager, 3);
    until("all memory in use", || {
        manager.view().spent.guests_bytes > 100 * MIB
    });
    let spent = manager.view().spent;
    let used = (spent.guests_bytes + spent.pools_bytes + spent.manager_bytes) / MIB;
    let view = manager.client().change_host(&budget(used / 2)).unwrap();
    assert_eq!(view.settings.budget_bytes, used / 2 * MIB);
    let began = Instant::now();
    let mut held_since = None;
    until("half the budget, held for three seconds", || {
        let held = manager.view().free_bytes.is_some_and(|free| free >= 0);
        // What is seen in the first two seconds may be from before.
        let held = held && began.elapsed() > Duration::from_secs(2);
        held_since = held.then(|| held_since.unwrap_or_else(Instant::now));
        held_since.is_some_and(|since: Instant| since.elapsed() > Duration::from_secs(3))
    });
    let seconds = began.elapsed().as_secs_f64() - 3.0;
    println!("{used} MiB to {} MiB in {seconds:.1} s", used / 2);
    // A look at all pages wants all memory back.
    manager.client().change_host(&budget(1024)).unwrap();
    guests.iter_mut().for_each(Guest::assert_right);
}

/// Waits until the manager has had memory left for three seconds on end.
fn held_for_three_seconds(manager: &Manager) {
    let mut held_since = None;
    until("the budget is held for three seconds", || {
        let held = manager.view().free_bytes.is_some_and(|free| free >= 0);
        held_since = held.then(|| held_since.unwrap_or_else(Instant::now));
        held_since.is_some_and(|since: Instant| since.elapsed() > Duration::from_secs(3))
    });
}

#[test]
fn what_a_guest_with_a_full_swap_disk_cannot_give_up_its_neighbour_gives() {
    let Some(disk) = SmallDisk::or_skip(1) else { return };
    // No swap file fits.
    std::fs::write(disk.path().join("ballast"), vec![1; 768 << 10]).unwrap();
    // One plan: later ones, which know that both rest, would ask the neighbour for more.
    let manager = Manager::start_with(Path::new(PROGRAM), 1024, &["--rebalance", "1h"]);
    let guest = |name: &str, seed| GuestOptions::new(name).seed(seed).all_different().rate(0);
    // Of a program that does not say what it can swap, or it would not be admitted.
    let stuck = guest("stuck", 1).mib(128).swap(disk.path()).of_version(4);
    let stuck = Guest::start(Path::new(PROGRAM), manager.dir(), stuck);
    let able = Guest::start(Path::new(PROGRAM), manager.dir(), guest("able", 2).mib(64));
    let mut guests = [stuck, able];
    until("all memory in use", || {
        manager.view().spent.guests_bytes > 185 * MIB
    });
    // Half of the stuck one's pages do not compress: that alone is more than its half of this budget, and what it has
    // too much is more than what is to stay free.
    manager.client().change_host(&budget(104)).unwrap();
    guests[0].until("its pages are compressed", |status| status.compressed > 12 << 10);
    held_for_three_seconds(&manager);
    let statuses = guests.each_ref().map(Guest::status);
    assert_eq!(statuses[0].swapped, 0, "{statuses:?}");
    manager.client().change_host(&budget(1024)).unwrap();
    guests.iter_mut().for_each(Guest::assert_right);
}

#[test]
fn a_guest_that_waits_for_memory_and_gets_none_is_named_with_the_reason_until_there_is_some() {
    let Some(disk) = SmallDisk::or_skip(1) else { return };
    // No swap file fits.
    std::fs::write(disk.path().join("ballast"), vec![1; 768 << 10]).unwrap();
    let manager = Manager::start(Path::new(PROGRAM), 256);
    let options = GuestOptions::new("still")
        .mib(48)
        .min_mib(4)
        .all_different()
        .rate(500);
    // Of a program that does not say what it can swap, or it would not be admitted.
    let options = options.swap(disk.path()).of_version(4);
    let mut guest = Guest::start(Path::new(PROGRAM), manager.dir(), options);
    guest.until("all memory in use", |status| status.private > 47 << 8);
    assert_eq!(manager.view().waiting_for_memory, []);
    // Half of its pages compress, and the others alone are more.
    manager.client().change_host(&budget(24)).unwrap();
    until("it waits", || {
        let waiting = manager.view().waiting_for_memory;
        let is_named = |guest: &WaitingView| {
            guest.waited_seconds >= 3.0
                && (guest.guest.as_str(), guest.reason.as_str()) == ("still", "no memory is free")
        };
        waiting.iter().any(is_named)
    });
    manager.client().change_host(&budget(256)).unwrap();
    until("it goes on", || manager.view().waiting_for_memory.is_empty());
    guest.assert_right();
}

#[test]
fn nothing_is_taken_of_what_was_promised() {
    const MIN: u64 = 24;
    let manager = Manager::start(Path::new(PROGRAM), 1024);
    let guest = |number: u64| {
        let options = GuestOptions::new(&format!("g{number}")).seed(number).mib(48);
        let options = options.min_mib(MIN).all_different().rate(300);
        Guest::start(Path::new(PROGRAM), manager.dir(), options)
    };
    let has_minimum = |guest: &Guest| {
        let status = guest.status();
        let has = (status.private + status.shared + status.zero) * 4096 + status.store_bytes;
        // Pages are on their way in and out while they are counted.
        assert!(has >= (MIN - 1) * MIB, "{}: {status:?}", guest.name());
        status
    };
    let mut guests = vec![guest(1), guest(2)];
    until("all memory in use", || {
        manager.view().spent.guests_bytes > 90 * MIB
    });
    // Room for three minimums and little more; the third guest comes when there is nothing left.
    manager.client().change_host(&budget(132)).unwrap();
    guests.push(guest(3));
    let mut seen = 0;
    until("all have been squeezed, and seen a hundred times", || {
        let squeezed = |status: &simulated::Status| status.compressed + status.swapped > 0;
        let all = guests.iter().map(has_minimum).filter(squeezed).count() == guests.len();
        seen += u32::from(all);
        seen >= 100
    });
    held_for_three_seconds(&manager);
    manager.client().change_host(&budget(1024)).unwrap();
    guests.iter_mut().for_each(Guest::assert_right);
}

#[test]
fn a_budget_below_the_minimums_is_refused_with_a_message() {
    let manager = Manager::start(Path::new(PROGRAM), 512);
    let _guests = guests(&manager, 3);
    match manager.client().change_host(&budget(16)) {
        Err(ClientError::Refused { status: 409, error }) => {
            assert!(error.contains("promise") && error.contains("MiB"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(manager.view().settings.budget_bytes, 512 * MIB);
}

#[test]
fn a_guest_that_cannot_be_managed_does_not_run_under_a_budget_and_says_why() {
    let manager = Manager::start(Path::new(PROGRAM), 128);
    let options = GuestOptions::new("locked").under(manager.dir()).locked();
    let ended = std::process::Command::new(PROGRAM)
        .args(options.to_args())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(!ended.status.success(), "{said}");
    for words in [
        "cannot be managed, so no budget can hold it",
        "--manager none",
        "locks all memory",
    ] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    until("its promise is given back", || manager.view().minimums_bytes == 0);
}

#[test]
fn a_full_swap_file_leaves_pages_in_memory() {
    const PAGES: u64 = 48 << 8;
    // Half of the guest, to the last MiB.
    let Some(disk) = SmallDisk::or_skip(24) else {
        return;
    };
    let ram = Arc::new(GuestRam::new(48 * MIB).unwrap());
    let content = |page: u64| {
        ((page << 12) | 1)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .to_le_bytes()
    };
    for page in 0..PAGES {
        let bytes = content(page).repeat(512);
        ram.view().write_slice(&bytes, GuestAddress(page * 4096)).unwrap();
    }
    let managed = ManagedMemory::start(&ram, Some(disk.path().to_owned())).unwrap();
    let region = managed.region();
    region.split_blocks(u32::MAX);
    let all = PageRun {
        first: Gfn::new(0),
        count: PAGES as u32,
    };
    let error = region.swap_out(all).unwrap_err();
    let reasons = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    let text: Vec<_> = reasons.map(ToString::to_string).collect();
    assert!(text.join(": ").contains("no room for the swap file"), "{text:?}");
    let stats = region.stats();
    assert!(stats.swapped == 24 << 8, "{stats:?}");
    assert_eq!(stats.pages_lost, 0);
    for page in 0..PAGES {
        let mut bytes = [0; 4096];
        ram.view()
            .read_slice(&mut bytes, GuestAddress(page * 4096))
            .unwrap();
        assert!(bytes.chunks(8).all(|word| word == content(page)), "page {page}");
    }
}

#[test]
fn a_full_disk_under_an_overlay_is_an_error_and_what_was_written_stays() {
    let Some(disk) = SmallDisk::or_skip(2) else { return };
    let base = disk.path().join("base.img");
    std::fs::File::create(&base).unwrap().set_len(16 * MIB).unwrap();
    let mut overlay = OverlayDisk::open(&base, disk.path()).unwrap();
    let block = |number: u64| vec![number as u8 + 1; 64 << 10];
    let written = (0..256).take_while(|&number| overlay.write(&block(number), number << 16).is_ok());
    let written = written.count() as u64;
    assert!((8..64).contains(&written), "{written} blocks of 64 KiB in 2 MiB");
    let mut bytes = vec![0; 64 << 10];
    for number in 0..written {
        overlay.read(&mut bytes, number << 16).unwrap();
        assert_eq!(bytes, block(number), "block {number}");
        overlay.write(&block(number + 1), number << 16).unwrap();
    }
}
