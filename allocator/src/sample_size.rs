//! How many pages to sample.

use crate::Pages;
use crate::interval::Interval;

/// The error that sampling may bring into a target, and the sample sizes allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// How far the target may be off because of sampling, 95 times of 100.
    pub error: Pages,
    /// The smallest sample: enough to notice that an idle guest wakes up.
    pub least: u32,
    /// The largest sample: what taking pages away from the guest may cost.
    pub most: u32,
}

impl Precision {
    /// The smallest sample that keeps the target of a guest with `private` pages within the error.
    ///
    /// `fraction` is what is believed active; `sensitivity` is how far the target moves per page of estimate
    /// ([`Explanation::sensitivity`](crate::Explanation::sensitivity)). The variance is taken at the end of the
    /// interval of a least sample that is nearer to one half, so that a fraction near 0 or 1 is not taken for
    /// certainty. Drawing without replacement is accounted for.
    #[must_use]
    pub fn sample_size(self, private: Pages, fraction: f64, sensitivity: f64) -> u32 {
        let least = self.least.max(1);
        let most = self.most.max(least);
        let whole = private.get() as f64;
        let near = Interval::wilson(fraction.clamp(0.0, 1.0), f64::from(least), 1.0);
        let half = 0.5_f64.clamp(near.low, near.high);
        let reach = Interval::TWO_SIDED_95 * sensitivity.clamp(0.0, 1.0) * whole;
        let error = (self.error.get() as f64).max(0.5);
        let endless = half * (1.0 - half) * (reach / error) * (reach / error);
        let finite = endless / (1.0 + endless / whole.max(1.0));
        (finite.ceil() as u32).clamp(least, most)
    }
}

impl Default for Precision {
    /// Within 16 MiB, by 16 to 400 pages. The published system takes 100 always.
    fn default() -> Self {
        Self {
            error: Pages::from_mib(16),
            least: 16,
            most: 400,
        }
    }
}
