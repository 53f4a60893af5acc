//! What holds exactly at a boundary, and the numbers that the documentation promises.

use std::time::Duration;

use allocator::*;

const MAX: Pages = Pages::new(4_000_000);

/// A guest of `MAX` pages, all idle.
fn guest(held: Pages, balloon: Balloon) -> Claim {
    Claim {
        active: Pages::ZERO,
        holding: Holding {
            held,
            balloon,
            ..Holding::default()
        },
        ..Claim::new(GuestId::new(1), Pages::ZERO, MAX, Shares::NORMAL)
    }
}

fn decide(memory: Pages, claim: Claim, now: Situation) -> Vec<(Action, u64)> {
    let supply = Supply {
        memory,
        tax: Tax::DEFAULT,
    };
    let fleet = Fleet::new(supply, &[], &[claim]).expect("a fleet");
    let mut steps = Vec::new();
    Ladder::default().decide(&fleet, &Plan::compute(&fleet), now, &mut steps);
    steps
        .into_iter()
        .map(|step| (step.action, step.pages.get()))
        .collect()
}

#[test]
fn defaults_are_what_their_documentation_says() {
    let rates = Rates::default();
    assert_eq!(
        [
            rates.balloon,
            rates.share,
            rates.compress,
            rates.swap,
            rates.release
        ]
        .map(Pages::get),
        [64 << 8, 10_000, 10_000, 16 << 8, 1024 << 8]
    );
    let precision = Precision::default();
    assert_eq!(
        (precision.error, precision.least, precision.most),
        (Pages::from_mib(16), 16, 400)
    );
    assert_eq!(Ladder::default().dead_band, 0.01);
    let overbooking = Overbooking::new(0.01, 2, Dependence::Unknown).expect("a probability");
    assert_eq!(Overbooking::default(), overbooking);
}

#[test]
fn pages_are_a_part_of_a_whole() {
    let parts = [(0, 0), (5, 0), (1, 1), (1, 2)].map(|(part, whole)| Pages::new(part).of(Pages::new(whole)));
    assert_eq!(parts, [0.0, 0.0, 1.0, 0.5]);
}

#[test]
fn an_interval_of_no_pages_is_everything() {
    let everything = Interval { low: 0.0, high: 1.0 };
    for size in [0.0, -1.0, f64::NAN] {
        assert_eq!(Interval::wilson(0.5, size, 1.0), everything, "{size}");
    }
}

#[test]
fn rates_are_exact_over_any_time() {
    let all = Balloon::Answers {
        room: MAX,
        size: Pages::ZERO,
    };
    let after = |elapsed| Situation {
        state: State::Soft,
        free: Pages::ZERO,
        goal: MAX,
        elapsed,
    };
    let rate = Rates::default().balloon.get();
    for (elapsed, pages) in [
        (Duration::from_secs(200), 200 * rate),
        (Duration::from_millis(500), rate / 2),
        (Duration::from_micros(1), 0),
    ] {
        let steps = decide(Pages::new(1), guest(MAX, all), after(elapsed));
        assert_eq!(steps.first().map_or(0, |step| step.1), pages, "{elapsed:?}");
    }
}

#[test]
fn a_balloon_is_let_go_from_the_first_page_beyond_the_dead_band_on() {
    let size = Pages::new(2_000_000);
    let now = Situation {
        state: State::High,
        free: MAX,
        goal: Pages::ZERO,
        elapsed: Duration::from_secs(60),
    };
    let balloon = Balloon::Answers {
        room: Pages::ZERO,
        size,
    };
    // One percent of the guest's maximum.
    let band = 40_000;
    for (beyond, released) in [(band, vec![]), (band + 1, vec![(Action::Release, band + 1)])] {
        let memory = MAX - size + Pages::new(beyond);
        assert_eq!(
            decide(memory, guest(MAX - size, balloon), now),
            released,
            "{beyond}"
        );
    }
}

#[test]
fn gains_may_be_equal_but_not_crossed() {
    assert!(Gains::new(0.5, 0.5).is_ok());
    assert!(Gains::new(1.0, 1.0).is_ok());
    assert!(Gains::new(0.5, 0.500_001).is_err());
    assert!(Gains::new(1.000_001, 0.5).is_err());
    assert!(Gains::new(0.5, 0.0).is_err());
}

#[test]
fn every_two_neighbouring_thresholds_are_in_order() {
    let levels = |values: [u64; 5]| {
        let [split, high, soft, hard, low] = values.map(Pages::new);
        Levels {
            high,
            soft,
            hard,
            low,
            split,
        }
    };
    let fine = [50, 40, 30, 20, 10];
    assert!(Thresholds::new(levels(fine), 0.0).is_ok());
    assert!(
        Thresholds::new(levels([7; 5]), 1.0).is_ok(),
        "equal ones are in order"
    );
    for at in 0..4 {
        let mut crossed = fine;
        crossed.swap(at, at + 1);
        assert!(Thresholds::new(levels(crossed), 0.0).is_err(), "{crossed:?}");
    }
    for hysteresis in [-0.001, 1.001, f64::NAN, f64::INFINITY] {
        assert!(Thresholds::new(levels(fine), hysteresis).is_err(), "{hysteresis}");
    }
}
