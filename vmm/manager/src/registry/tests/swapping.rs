//! Guests whose own swap backs what may have to go there, or does not.

use super::*;
use crate::survey::Measured;
use levy_protocol::link::{PageCounts, SwapRoom};

/// The file system that guests swap to.
const DISK: u64 = 7;

fn room(device: u64, free_mib: u64) -> SwapRoom {
    SwapRoom {
        device,
        free_bytes: free_mib * MIB,
        spare_bytes: 0,
    }
}

/// Process `pid`, of which 112 MiB may have to be swapped to where it says that there is so much room. It has a
/// folder open on [`DISK`], and nowhere else.
fn swapping(name: &str, pid: u32, swap: SwapRoom) -> Applicant {
    let hello = Hello {
        swap: Some(swap),
        ..hello(name)
    };
    Applicant {
        swap_device: Some(swap.device).filter(|device| *device == DISK),
        ..applicant(hello, pid)
    }
}

fn admit_swapping(registry: &mut Registry, name: &str, pid: u32, swap: SwapRoom) -> Result<GuestId, String> {
    let admitted = registry.admit(Instant::now(), swapping(name, pid, swap));
    admitted.map_err(|error| error.to_string())
}

/// A report of a guest that has swapped so much, and says that there is so much room.
fn report(swapped_mib: u64, swap: SwapRoom) -> Report {
    Report {
        pages: PageCounts {
            swapped: swapped_mib * 256,
            ..PageCounts::default()
        },
        swap: Some(swap),
        ..Report::default()
    }
}

#[test]
fn a_guest_whose_swap_does_not_hold_its_max_less_min_is_refused_with_figures() {
    let mut registry = registry();
    let refused = admit_swapping(&mut registry, "a", 1, room(DISK, 100)).unwrap_err();
    for words in [
        "\"a\"",
        "104857600 bytes free",
        "12582912 bytes are missing",
        "--swap",
        "3072 pages",
    ] {
        assert!(refused.contains(words), "{words:?} is not in {refused}");
    }
    assert_eq!(registry.guests().count(), 0);
    admit_swapping(&mut registry, "a", 1, room(DISK, 112)).unwrap();
    // One that says nothing of it is tested as ever.
    admit(&mut registry, "b", 2).unwrap();
}

#[test]
fn what_a_guest_that_another_manager_admitted_has_swapped_already_needs_no_place_once_more() {
    let mut registry = registry();
    let swapped = |mib: u64| {
        let mut applicant = swapping("a", 1, room(DISK, 12));
        applicant.hello.pages = Some(report(mib, room(DISK, 12)).pages);
        applicant
    };
    registry.admit(Instant::now(), swapped(99)).unwrap_err();
    registry.admit(Instant::now(), swapped(100)).unwrap();
    // More than it can have is no reason to take anything else in.
    let mut liar = swapped(1 << 40);
    liar.hello.name = "b".to_owned();
    liar.process = process(2);
    registry.admit(Instant::now(), liar).unwrap();
    admit_swapping(&mut registry, "c", 3, room(DISK, 112)).unwrap_err();
}

#[test]
fn what_is_free_on_one_file_system_counts_once_for_all_guests_on_it() {
    let mut registry = registry();
    let first = admit_swapping(&mut registry, "a", 1, room(DISK, 200)).unwrap();
    let refused = admit_swapping(&mut registry, "b", 2, room(DISK, 200)).unwrap_err();
    assert!(
        refused.contains("\"b\"") && refused.contains("25165824 bytes are missing"),
        "{refused}"
    );
    // What is swapped already has its place, and so have pages that fit into the file as it is.
    let spare = SwapRoom {
        spare_bytes: 12 * MIB,
        ..room(DISK, 148)
    };
    registry.on_report(first, report(50, spare));
    admit_swapping(&mut registry, "b", 2, room(DISK, 161)).unwrap_err();
    admit_swapping(&mut registry, "b", 2, room(DISK, 162)).unwrap();
}

#[test]
fn what_a_process_makes_up_about_its_swap_harms_no_other() {
    let mut registry = registry();
    // It has nothing open there: it takes nothing away there.
    admit_swapping(&mut registry, "a", 1, room(DISK + 1, 112)).unwrap();
    admit_swapping(&mut registry, "b", 2, room(DISK + 1, 112)).unwrap();
    let liar = admit_swapping(&mut registry, "c", 3, room(DISK, 112)).unwrap();
    // No room at all, or more than there is: others are tested against their own.
    for (swapped, free) in [(0, 0), (0, 1 << 40), (128, 1 << 43)] {
        registry.on_report(liar, report(swapped, room(DISK + 5, free)));
        let mine = 112 + if swapped > 0 { 0 } else { 112 };
        let refused = admit_swapping(&mut registry, "d", 4, room(DISK, mine - 1)).unwrap_err();
        assert!(refused.contains("1048576 bytes are missing"), "{refused}");
        let id = admit_swapping(&mut registry, "d", 4, room(DISK, mine)).unwrap();
        registry.remove_dead(id);
    }
}

#[test]
fn neither_a_smaller_budget_nor_a_lower_minimum_is_taken_that_swap_does_not_back() {
    let mut registry = registry();
    let id = admit_swapping(&mut registry, "a", 1, room(DISK, 200)).unwrap();
    let smaller = Settings::new(Pages::from_mib(512));
    registry.set(smaller).unwrap();
    let lower = |registry: &Registry, mib| Limits {
        min: Pages::from_mib(mib),
        ..registry.member(id).unwrap().limits
    };
    // Its disk has filled up, and it holds 120 MiB.
    registry.on_report(id, report(0, room(DISK, 0)));
    registry.take_in(&Measured {
        counted: vec![(id, holds(120))],
        ..Measured::default()
    });
    let refused = registry
        .set(Settings::new(Pages::from_mib(90)))
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("promise") && refused.contains("\"a\""),
        "{refused}"
    );
    assert_eq!(*registry.policy().settings(), smaller);
    // Where there is room for all that it holds, it keeps no budget from becoming smaller.
    registry.set(Settings::new(Pages::from_mib(256))).unwrap();
    registry.set(smaller).unwrap();
    let limits = lower(&registry, 8);
    let refused = registry.set_limits(id, limits).unwrap_err();
    assert!(matches!(refused, ChangeError::Swap(_)), "{refused}");
    // What makes it better is taken.
    registry.set(Settings::new(Pages::from_mib(600))).unwrap();
    let limits = lower(&registry, 28);
    registry.set_limits(id, limits).unwrap();
    registry.on_report(id, report(0, room(DISK, 100)));
    registry.set(Settings::new(Pages::from_mib(90))).unwrap();
}

#[test]
fn a_guest_of_the_manager_before_is_taken_back_whatever_its_swap_holds() {
    let mut registry = registry();
    registry.take_over(&kept("a", 1));
    let fates = fates(&registry, || Fate::Lives);
    registry.take_back(Instant::now(), fates);
    let id = admit_swapping(&mut registry, "a", 1, room(DISK, 0)).unwrap();
    assert!(
        registry
            .own_swap_suffices(id, registry.member(id).unwrap().limits)
            .is_err()
    );
}

#[test]
fn guests_that_are_still_to_return_keep_what_they_hold_until_they_were_heard_or_their_time_is_over() {
    let second = Duration::from_secs(1);
    let returning = || {
        let mut registry = registry();
        registry.take_over(&kept("a", 1));
        let fates = fates(&registry, || Fate::Lives);
        registry.take_back(Instant::now(), fates);
        registry.welcome_back();
        let id = registry.find("a").unwrap();
        registry.take_in(&Measured {
            counted: vec![(id, holds(120))],
            ..Measured::default()
        });
        (registry, id)
    };
    let smaller = |registry: &mut Registry| registry.set(Settings::new(Pages::from_mib(90)));
    let lower = |registry: &mut Registry, id: GuestId| {
        let before = registry.member(id).unwrap().limits;
        let min = Pages::from_mib(8);
        registry.set_limits(id, Limits { min, ..before })
    };
    // Nothing is taken as long as it may not be able to swap that; what needs no swap is.
    let (mut registry, id) = returning();
    for refused in [smaller(&mut registry), lower(&mut registry, id)] {
        let refused = refused.unwrap_err().to_string();
        for words in ["guests that are still to return", "\"a\"", "try again"] {
            assert!(refused.contains(words), "{words:?} is not in {refused}");
        }
    }
    registry.set(Settings::new(Pages::from_mib(200))).unwrap();
    // It is heard: its swap is full, or takes all.
    let heard = |registry: &mut Registry, free| {
        admit_swapping(registry, "a", 1, room(DISK, free)).unwrap();
        registry.on_report(id, report(0, room(DISK, free)));
    };
    heard(&mut registry, 0);
    let refused = smaller(&mut registry).unwrap_err();
    assert!(matches!(refused, ChangeError::Swap(_)), "{refused}");
    assert!(refused.to_string().contains("`levy stop a`"), "{refused}");
    let (mut registry, id) = returning();
    heard(&mut registry, 200);
    smaller(&mut registry).unwrap();
    lower(&mut registry, id).unwrap();
    // Or its time is over: it may never come.
    let (mut registry, id) = returning();
    for _ in 0..2 {
        smaller(&mut registry).unwrap_err();
        registry.round(second).unwrap();
    }
    smaller(&mut registry).unwrap();
    lower(&mut registry, id).unwrap();
}
