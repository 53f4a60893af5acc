//! Orders, and room that is made, of real memory.

use std::thread;

use page_share::{AnonymousMemory, Options, Swap};

use super::*;
use crate::limit_controller::Observed;
use crate::test_guest::{MIB, TestGuest, content, until};

/// What reclaims from `guest`, of which `minimum` MiB are guaranteed.
fn reclaimer(guest: &TestGuest, minimum: u64) -> Reclaimer {
    reclaimer_of(guest.region(), minimum)
}

fn reclaimer_of(region: &Arc<Region>, minimum: u64) -> Reclaimer {
    let now = Instant::now();
    let mut limits = LimitController::new(now, minimum * MIB, 1 << 30);
    limits.set_limit(now, Some(1 << 40), 0);
    let seen = Observed {
        held: Some(1 << 40),
        grown: 0,
        waiting: 0,
        has_manager: true,
        freed: 0,
        look: Duration::ZERO,
        pages: &|| GuestPages::of(&region.stats()),
    };
    limits.step(now, &seen);
    Reclaimer::new(Arc::clone(region), Arc::new(Mutex::new(limits)))
}

#[test]
fn room_is_made_down_to_the_minimum() {
    let guest = TestGuest::full(16);
    let reclaimer = reclaimer(&guest, 8);
    while reclaimer.make_room(u32::MAX) > 0 {}
    let away = guest.away();
    assert!(
        (8 * MIB..=8 * MIB + 8 * MIB / 64).contains(&away),
        "{away} bytes away"
    );
    lock(&reclaimer.limits).set_minimum(4 * MIB);
    while reclaimer.make_room(u32::MAX) > 0 {}
    let away = guest.away();
    assert!(
        (12 * MIB..=12 * MIB + 4 * MIB / 64).contains(&away),
        "{away} bytes away"
    );
}

#[test]
fn room_that_a_full_swap_file_makes_for_a_part_is_counted() {
    let ram = AnonymousMemory::new(512).unwrap();
    // None of them compresses.
    (0..512).for_each(|page| ram.write_page(page, &content(page)));
    let dir = tempfile::tempdir().unwrap();
    let swap = Swap::create(dir.path(), 100).unwrap();
    let options = Options::default().with_swap(swap);
    let region = Arc::new(Region::adopt(vec![ram.range(Gfn::new(0))], options).unwrap());
    let reclaimer = reclaimer_of(&region, 0);
    assert_eq!([(); 3].map(|()| reclaimer.make_room(64)), [64, 36, 0]);
    let back = (0..512)
        .map(Gfn::new)
        .find(|&page| region.state(page) == State::Swapped);
    assert_eq!(
        region.bring_back(PageRun {
            first: back.unwrap(),
            count: 1,
        }),
        1
    );
    assert_eq!([(); 2].map(|()| reclaimer.make_room(64)), [1, 0]);
}

/// Memory of which 4 MiB and a little are to spare, known to be cold.
fn cold() -> (TestGuest, Reclaimer) {
    let guest = TestGuest::full(16);
    let reclaimer = reclaimer(&guest, 12);
    let region = guest.region();
    until("cold", || {
        region.scan_pass();
        region.cold_pages(4096).iter().map(|run| run.count).sum::<u32>() == 4096
    });
    (guest, reclaimer)
}

/// Some pages are in the swap file, and no more than `most`.
fn assert_swapped(guest: &TestGuest, most: u64) {
    let swapped = guest.region().stats().swapped;
    assert!(swapped > 0 && swapped <= most, "{swapped} swapped");
}

#[test]
fn an_order_to_compress_and_swap_leaves_the_minimum() {
    let (guest, reclaimer) = cold();
    let spare = reclaimer.spare();
    assert!((1024..1200).contains(&spare), "{spare} pages to spare");
    // None of them compresses.
    reclaimer.obey(1000, 1000);
    assert_swapped(&guest, spare);
}

#[test]
fn orders_that_are_obeyed_at_once_leave_the_minimum() {
    let (guest, reclaimer) = cold();
    let spare = reclaimer.spare();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| reclaimer.obey(0, 1000));
        }
    });
    assert_swapped(&guest, spare);
}
