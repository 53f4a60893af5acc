//! How much of its memory a guest actively uses, from samples.

use std::time::Duration;

use crate::Pages;
use crate::average::{Average, Sample};
use crate::gains::Gains;
use crate::interval::Interval;
use crate::signal::{Signal, Witness};

/// Follows one guest's active fraction: quick to rise, slow to fall.
///
/// Per period (30 s of the guest's own running time) the caller draws some of the guest's private pages at random,
/// takes their mappings away and counts those touched again. The estimate is the largest of a slow average, a fast
/// average, and the fast average as it would be if the running period ended now. Until a first period was closed
/// nothing is known, and all private pages count as active: a sample that has only just been taken says nothing about
/// pages that were not touched yet.
///
/// ```
/// use allocator::{Estimator, Pages, Sample};
/// let mut estimator = Estimator::default();
/// estimator.close_period(Sample::new(20, 100));
/// estimator.run(Sample::new(60, 100)); // The running period has already seen 60 of 100 touched.
/// let estimate = estimator.estimate(Pages::new(1000), &[]);
/// assert!(estimate.fraction > 0.5 && estimate.interval.low < estimate.fraction);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimator {
    gains: Gains,
    /// Slow and fast average, once a period was closed.
    averages: Option<(Average, Average)>,
    /// The fast average including the running period.
    running: Option<Average>,
}

/// What is believed of a guest's activity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The active fraction of its private pages, 0 to 1. Before a period was closed: 1, so untaxed.
    pub fraction: f64,
    /// 95 % confidence interval of the sampled part; 0 to 1 before a period was closed.
    pub interval: Interval,
    /// `fraction` in pages.
    pub active: Pages,
    /// Signals that were too old to count.
    pub stale: u32,
}

/// Signals older than this are not evidence any more: two periods.
pub const SIGNAL_LIFETIME: Duration = Duration::from_secs(60);

impl Estimator {
    /// An estimator with gains other than the default.
    #[must_use]
    pub fn new(gains: Gains) -> Self {
        Self {
            gains,
            averages: None,
            running: None,
        }
    }

    /// Ends a period with its whole sample. A sample of no pages ends the period without evidence.
    pub fn close_period(&mut self, sample: Sample) {
        self.running = None;
        if sample.drawn == 0 {
            return;
        }
        self.averages = Some(match self.averages {
            None => (Average::of(sample), Average::of(sample)),
            Some((slow, fast)) => (
                slow.with(sample, self.gains.slow()),
                fast.with(sample, self.gains.fast()),
            ),
        });
    }

    /// Counts of the running period so far: `sample` is drawn whole, touched in part. Replaces the previous call's. In
    /// the first period it changes nothing.
    pub fn run(&mut self, sample: Sample) {
        let averages = self.averages.filter(|_| sample.drawn > 0);
        self.running = averages.map(|(_, fast)| fast.with(sample, self.gains.fast()));
    }

    /// The estimate for a guest with `private` private pages. Every fresh signal is a lower bound: the host's in
    /// full, the guest's own word at most one standard error above what was sampled.
    #[must_use]
    pub fn estimate(&self, private: Pages, signals: &[Signal]) -> Estimate {
        let (mut fraction, interval, guest_limit) = match self.largest() {
            Some(average) => {
                let (value, size) = (average.value(), average.sample_size());
                let interval = Interval::wilson(value, size, Interval::TWO_SIDED_95);
                (value, interval, Interval::wilson(value, size, 1.0).high)
            }
            None => (1.0, Interval { low: 0.0, high: 1.0 }, 1.0),
        };
        let mut stale = 0;
        for signal in signals {
            if signal.age > SIGNAL_LIFETIME {
                stale += 1;
                continue;
            }
            let (said, witness) = signal.evidence.fraction(private);
            fraction = fraction.max(match witness {
                Witness::Host => said,
                Witness::Guest => said.min(guest_limit),
            });
        }
        Estimate {
            fraction,
            interval,
            active: Pages::new((fraction * private.get() as f64).ceil() as u64).min(private),
            stale,
        }
    }

    /// Slow, fast and running averages, in this order; none before the first period was closed.
    #[must_use]
    pub fn averages(&self) -> Option<[f64; 3]> {
        let (slow, fast) = self.averages?;
        let running = self.running.unwrap_or(fast);
        Some([slow.value(), fast.value(), running.value()])
    }

    fn largest(&self) -> Option<Average> {
        let (slow, fast) = self.averages.unzip();
        [slow, fast, self.running]
            .into_iter()
            .flatten()
            .max_by(|a, b| a.value().total_cmp(&b.value()))
    }
}
