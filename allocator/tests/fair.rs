//! The fairness report against cases done by hand.

use std::time::Duration;

use allocator::*;

fn portion(entitled: u64, held: u64) -> Portion {
    Portion {
        entitled: Pages::new(entitled),
        held: Pages::new(held),
    }
}

#[test]
fn jains_index_is_1_for_equal_parts_and_1_over_n_for_one_taker() {
    assert_eq!(jain([portion(10, 5), portion(100, 50)]), 1.0);
    assert_eq!(
        jain([portion(10, 10), portion(10, 0), portion(10, 0), portion(10, 0)]),
        0.25
    );
    assert_eq!(
        jain([portion(0, 5), portion(10, 10)]),
        1.0,
        "who is entitled to nothing is left out"
    );
    assert_eq!(jain([]), 1.0);
}

#[test]
fn convergence_is_for_good() {
    let mut meter = FairnessMeter::new(1, 0.05);
    for (second, held) in [(0, 50), (1, 97), (2, 80), (3, 96), (4, 104), (5, 100)] {
        meter.observe(Duration::from_secs(second), [portion(100, held)]);
    }
    assert_eq!(meter.report().converged_after, Some(Duration::from_secs(3)));
    meter.observe(Duration::from_secs(6), [portion(100, 106)]);
    assert_eq!(meter.report().converged_after, None);
}

#[test]
fn only_real_turns_are_counted() {
    let mut meter = FairnessMeter::new(2, 0.05);
    let held = [10, 50, 100, 97, 101, 60, 62, 20, 90];
    for (second, held) in (0..).zip(held) {
        meter.observe(
            Duration::from_secs(second),
            [portion(100, held), portion(100, 100)],
        );
    }
    // Up to 101, down to 20, up again.
    assert_eq!(meter.report().direction_changes, [2, 0]);
    assert_eq!(meter.report().portions[0], portion(100, 90));
}

#[test]
fn a_turn_is_larger_than_the_tolerance() {
    let turns = |portions: &[(u64, u64)]| {
        let mut meter = FairnessMeter::new(1, 0.05);
        for (second, &(entitled, held)) in (0..).zip(portions) {
            meter.observe(Duration::from_secs(second), [portion(entitled, held)]);
        }
        meter.report().direction_changes[0]
    };
    assert_eq!(turns(&[(100, 50), (100, 100), (100, 95)]), 0);
    assert_eq!(turns(&[(100, 50), (100, 100), (100, 94)]), 1);
    assert_eq!(
        turns(&[(100, 50), (100, 44)]),
        1,
        "its first holding is a furthest point"
    );
    // Five pages of a hundred are no direction yet, from which one of twenty could be a turn.
    assert_eq!(turns(&[(100, 5), (20, 0)]), 0);
}
