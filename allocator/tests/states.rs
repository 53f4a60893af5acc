//! The states: down at once, up only clearly, and what each permits.

use allocator::*;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const TOTAL: Pages = Pages::new(100_000);

fn machine() -> StateMachine {
    StateMachine::new(Thresholds::published(TOTAL))
}

/// The state after each amount of free memory, in hundredths of a percent of the total.
fn run(free: &[u64]) -> Vec<State> {
    let mut machine = machine();
    free.iter()
        .map(|&free| machine.observe(Pages::new(free * 10)))
        .collect()
}

#[test]
fn down_on_crossing_the_lower_threshold() {
    use State::{Hard, High, Low, Soft};
    assert_eq!(
        run(&[700, 500, 400, 399, 200, 199, 100, 99]),
        [High, High, High, Soft, Soft, Hard, Hard, Low]
    );
    assert_eq!(run(&[700, 50]), [High, Low], "at once, over all states between");
}

#[test]
fn up_only_when_the_upper_threshold_is_clearly_exceeded() {
    use State::{Hard, High, Low, Soft};
    // One eighth above 2, 4 and 6 %.
    assert_eq!(
        run(&[50, 150, 224, 225, 449, 450, 674, 675]),
        [Low, Low, Low, Hard, Hard, Soft, Soft, High]
    );
    assert_eq!(run(&[50, 700]), [Low, High]);
}

#[test]
fn the_table_is_the_published_policy() {
    use Permission::{BeyondBalloon, No, Yes};
    let row = |state: State| Action::ALL.map(|action| state.permits(action));
    // In the order balloon, share, compress, swap, block, release.
    assert_eq!(row(State::High), [No, No, No, No, No, Yes]);
    assert_eq!(
        row(State::Soft),
        [Yes, BeyondBalloon, BeyondBalloon, BeyondBalloon, No, Yes]
    );
    assert_eq!(row(State::Hard), [Yes, Yes, Yes, Yes, No, No]);
    assert_eq!(row(State::Low), [Yes, Yes, Yes, Yes, Yes, No]);
    for (state, shorter) in State::ALL.iter().zip(&State::ALL[1..]) {
        assert!(state < shorter, "later states are shorter of memory");
    }
}

#[test]
fn a_goal_reached_is_the_high_state() {
    for total in [100, 12_345, 1 << 20, 1 << 36].map(Pages::new) {
        for thresholds in [Thresholds::published(total), Thresholds::sliding(total)] {
            let mut machine = StateMachine::new(thresholds);
            machine.observe(Pages::ZERO);
            assert_eq!(machine.observe(thresholds.goal()), State::High, "{total}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("regressions")))]

    /// Free memory that swings by less than the hysteresis changes the state at most once, and then downwards or to
    /// where it belongs.
    #[test]
    fn small_swings_do_not_swing_the_state(
        start in 0..12_000_u64,
        middle in 0..12_000_u64,
        swings in prop::collection::vec(0..125_u64, 1..100),
    ) {
        let mut machine = machine();
        machine.observe(Pages::new(start));
        let states: Vec<State> =
            swings.iter().map(|swing| machine.observe(Pages::new(middle + swing))).collect();
        // The first observation may move it anywhere; one edge at most is within reach of the swings after it.
        let changes = states.windows(2).filter(|pair| pair[0] != pair[1]).count();
        prop_assert!(changes <= 1, "{states:?}");
    }

    /// A state is never better than its own threshold allows, and never worse than clearly needed.
    #[test]
    fn states_match_free_memory(free in prop::collection::vec(0..12_000_u64, 1..50)) {
        let mut machine = machine();
        for free in free.into_iter().map(Pages::new) {
            let state = machine.observe(free);
            let thresholds = machine.thresholds();
            let worse = State::ALL.into_iter().filter(|other| *other > state);
            for other in worse {
                prop_assert!(free >= thresholds.of(other), "{state} with {free} free");
            }
            if state != State::High {
                prop_assert!(free < thresholds.goal(), "{state} with {free} free");
            }
        }
    }
}
