//! The estimator: quick up, slow down, honest about what it does not know.

use std::time::Duration;

use allocator::*;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const PRIVATE: Pages = Pages::new(65_536);

/// Numbers that depend on the seed alone.
struct Dice(u64);

impl Dice {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A sample of `size` pages of which each is touched with probability `fraction`.
    fn sample(&mut self, fraction: f64, size: u32) -> Sample {
        Sample::new((0..size).filter(|_| self.unit() < fraction).count() as u32, size)
    }
}

fn fraction(estimator: &Estimator) -> f64 {
    estimator.estimate(PRIVATE, &[]).fraction
}

#[test]
fn a_rise_is_followed_within_two_periods_in_95_of_100_runs() {
    for (from, to) in [(0.05, 0.5), (0.1, 0.9), (0.0, 1.0), (0.3, 0.6), (0.0, 0.5)] {
        let near = (0..10_000).filter(|&seed| {
            let (mut dice, mut estimator) = (Dice(seed), Estimator::default());
            (0..20).for_each(|_| estimator.close_period(dice.sample(from, 100)));
            (0..2).for_each(|_| estimator.close_period(dice.sample(to, 100)));
            (fraction(&estimator) - to).abs() <= 0.1
        });
        let near = near.count();
        assert!(near >= 9_500, "from {from} to {to}: {near} of 10000");
    }
}

#[test]
fn the_running_period_counts_at_once_and_only_upwards() {
    let mut estimator = Estimator::default();
    estimator.close_period(Sample::new(10, 100));
    estimator.run(Sample::new(0, 100));
    assert!(
        (fraction(&estimator) - 0.1).abs() < 1e-9,
        "an unfinished period lowers nothing"
    );
    estimator.run(Sample::new(90, 100));
    assert!(fraction(&estimator) > 0.7);
    estimator.close_period(Sample::new(90, 100));
    let averages = estimator.averages().expect("samples");
    assert_eq!(averages[1], averages[2], "no period is running");
    let [mut with, mut without] = [Estimator::default(), Estimator::default()];
    with.run(Sample::new(90, 100));
    with.close_period(Sample::new(10, 100));
    without.close_period(Sample::new(10, 100));
    assert_eq!(with.averages(), without.averages());
}

#[test]
fn a_fall_is_forgotten_to_one_half_in_four_periods() {
    let mut estimator = Estimator::default();
    (0..50).for_each(|_| estimator.close_period(Sample::new(80, 100)));
    (0..4).for_each(|_| estimator.close_period(Sample::new(0, 100)));
    assert!(
        (fraction(&estimator) - 0.4).abs() < 1e-6,
        "{}",
        fraction(&estimator)
    );
}

#[test]
fn intervals_hold_the_truth_as_often_as_they_say() {
    for truth in [0.02, 0.1, 0.3, 0.5, 0.8, 0.97] {
        let held = (0..4_000).filter(|&seed| {
            let (mut dice, mut estimator) = (Dice(seed), Estimator::default());
            (0..12).for_each(|_| estimator.close_period(dice.sample(truth, 100)));
            let interval = estimator.estimate(PRIVATE, &[]).interval;
            interval.low <= truth && truth <= interval.high
        });
        let held = held.count();
        // Taking the largest of three averages costs some of the 95 %.
        assert!(held >= 3_600, "{truth}: {held} of 4000");
    }
}

#[test]
fn nothing_measured_is_not_taxed() {
    let estimate = Estimator::default().estimate(PRIVATE, &[]);
    assert_eq!((estimate.fraction, estimate.active), (1.0, PRIVATE));
    assert_eq!(estimate.interval, Interval { low: 0.0, high: 1.0 });
    let mut estimator = Estimator::default();
    estimator.close_period(Sample::new(5, 0));
    assert_eq!(fraction(&estimator), 1.0, "a sample of no pages says nothing");
    // Nor does one of which nothing can have been touched yet.
    for touched in [0, 40, 100] {
        estimator.run(Sample::new(touched, 100));
        assert_eq!(fraction(&estimator), 1.0, "{touched} touched so far");
        assert_eq!(estimator.averages(), None);
    }
    estimator.close_period(Sample::new(5, 100));
    assert!(fraction(&estimator) < 0.06);
}

fn idle() -> Estimator {
    let mut estimator = Estimator::default();
    (0..20).for_each(|_| estimator.close_period(Sample::new(10, 100)));
    estimator
}

#[test]
fn the_hosts_signals_count_in_full_while_fresh() {
    let written = |age| Signal {
        evidence: Evidence::Written(Pages::new(32_768)),
        age: Duration::from_secs(age),
    };
    let estimator = idle();
    assert_eq!(
        estimator.estimate(PRIVATE, &[written(5)]).active,
        Pages::new(32_768)
    );
    let stale = estimator.estimate(PRIVATE, &[written(61)]);
    assert_eq!(stale.stale, 1);
    assert!((stale.fraction - 0.1).abs() < 1e-9);
    let refaults = Signal {
        evidence: Evidence::Refaulted(Pages::LIMIT),
        age: Duration::ZERO,
    };
    assert_eq!(estimator.estimate(PRIVATE, &[refaults]).active, PRIVATE);
}

#[test]
fn a_guests_word_moves_by_a_standard_error_at_most() {
    let estimator = idle();
    let lies = [
        Evidence::GuestStatistics(Pages::LIMIT),
        Evidence::GuestPressure(1.0),
        Evidence::GuestPressure(f64::NAN),
    ]
    .map(|evidence| Signal {
        evidence,
        age: Duration::ZERO,
    });
    let estimate = estimator.estimate(PRIVATE, &lies);
    assert!(
        estimate.fraction > 0.1 && estimate.fraction < 0.14,
        "{}",
        estimate.fraction
    );
}

#[test]
fn samples_are_as_large_as_the_target_needs() {
    let precision = Precision::default();
    let needed =
        |pages, fraction, sensitivity| precision.sample_size(Pages::from_mib(pages), fraction, sensitivity);
    assert_eq!(
        needed(256, 0.5, 0.0),
        16,
        "where nothing depends on it, the least"
    );
    assert_eq!(
        needed(4096, 0.5, 0.75),
        400,
        "a big guest would need more than is allowed"
    );
    assert!(needed(256, 0.5, 0.75) > 100 && needed(256, 0.5, 0.75) < 200);
    assert!(needed(256, 0.02, 0.75) < needed(256, 0.5, 0.75));
    // The promise: the error of the target, 95 times of 100.
    let (truth, size) = (0.4, needed(256, 0.4, 0.75));
    let within = (0..4_000).filter(|&seed| {
        let mut dice = Dice(seed);
        let mut estimator = Estimator::default();
        estimator.close_period(dice.sample(truth, size));
        let error = 0.75 * 65_536.0 * (fraction(&estimator) - truth).abs();
        error <= precision.error.get() as f64
    });
    let within = within.count();
    assert!(within >= 3_760, "{within} of 4000");
}

proptest! {
    #![proptest_config(ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("regressions")))]

    /// Whatever is fed in, fractions stay fractions and the estimate is within the guest.
    #[test]
    fn fractions_stay_fractions(
        samples in prop::collection::vec((any::<u32>(), any::<u32>(), any::<bool>()), 0..50),
        private in any::<u64>(),
        said in any::<f64>(),
    ) {
        let mut estimator = Estimator::default();
        for (touched, drawn, whole) in samples {
            let sample = Sample::new(touched, drawn);
            if whole { estimator.close_period(sample) } else { estimator.run(sample) }
        }
        let signals = [Signal { evidence: Evidence::GuestPressure(said), age: Duration::ZERO }];
        let estimate = estimator.estimate(Pages::new(private), &signals);
        prop_assert!((0.0..=1.0).contains(&estimate.fraction));
        prop_assert!(estimate.active <= Pages::new(private));
        prop_assert!(0.0 <= estimate.interval.low && estimate.interval.low <= estimate.interval.high);
        prop_assert!(estimate.interval.high <= 1.0);
        let size = Precision::default().sample_size(Pages::new(private), said, said);
        prop_assert!((16..=400).contains(&size));
    }
}
