//! After the first plan of a size, planning and deciding do not allocate.
#![allow(unsafe_code)]
// UNSAFETY: counting allocations needs a global allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use allocator::*;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`, which is the same there.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, which is the same there.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(act: impl FnOnce()) -> u64 {
    let before = COUNT.with(Cell::get);
    act();
    COUNT.with(Cell::get) - before
}

fn fleet(seed: u64) -> Fleet {
    let groups: Vec<Group> = (0..10).map(|index| Group::new(Shares::new(1 + index))).collect();
    let claim = |id: u64| {
        let max = 1000 + id * 7919 * (seed + 1) % 100_003;
        Claim {
            group: (id % 3 != 0).then(|| GroupId::new((id % 10) as u32)),
            active: Pages::new(max * (id % 5) / 4),
            holding: Holding {
                held: Pages::new(max),
                balloon: Balloon::Answers {
                    room: Pages::new(max / 2),
                    size: Pages::ZERO,
                },
                shareable: Pages::new(max),
                compressible: Pages::new(max),
                swappable: Pages::new(max),
            },
            ..Claim::new(GuestId::new(id), Pages::ZERO, Pages::new(max), Shares::NORMAL)
        }
    };
    let claims: Vec<Claim> = (0..1000).map(claim).collect();
    let supply = Supply {
        memory: Pages::new(20_000_000),
        tax: Tax::DEFAULT,
    };
    Fleet::new(supply, &groups, &claims).expect("a fleet")
}

#[test]
fn planning_again_does_not_allocate() {
    let fleets = [fleet(0), fleet(1), fleet(2)];
    let (mut planner, mut plan, mut steps) = (Planner::default(), Plan::default(), Vec::new());
    let now = Situation {
        state: State::Low,
        free: Pages::ZERO,
        goal: Pages::new(10_000_000),
        elapsed: Duration::from_secs(15),
    };
    let first = allocations(|| planner.plan(&fleets[0], &mut plan));
    // Targets, their index, groups, pages, clearings and the scratch of the price search: each once.
    assert_eq!(first, 6);
    steps.reserve(5 * 1000);
    for fleet in &fleets {
        let ladder = Ladder::default();
        assert_eq!(allocations(|| planner.plan(fleet, &mut plan)), 0);
        assert_eq!(allocations(|| ladder.decide(fleet, &plan, now, &mut steps)), 0);
        assert!(!steps.is_empty());
    }
}

#[test]
fn estimating_does_not_allocate() {
    let mut estimator = Estimator::default();
    let signals = [Signal {
        evidence: Evidence::Written(Pages::new(5)),
        age: Duration::ZERO,
    }];
    let count = allocations(|| {
        estimator.close_period(Sample::new(5, 100));
        estimator.run(Sample::new(50, 100));
        assert!(estimator.estimate(Pages::new(1000), &signals).fraction > 0.0);
    });
    assert_eq!(count, 0);
}
