//! An exponentially weighted average that knows how certain it is.

/// The average of sampled fractions, with the sampling variance it carries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Average {
    value: f64,
    /// The sum over all samples of weight^2 / n: one over the sample size that would be as certain.
    spread: f64,
}

impl Average {
    /// The average of one sample.
    pub(crate) fn of(sample: Sample) -> Self {
        Self {
            value: sample.fraction(),
            spread: 1.0 / f64::from(sample.drawn),
        }
    }

    /// The average with `sample` weighted by `gain`.
    pub(crate) fn with(self, sample: Sample, gain: f64) -> Self {
        let keep = 1.0 - gain;
        Self {
            value: keep * self.value + gain * sample.fraction(),
            spread: keep * keep * self.spread + gain * gain / f64::from(sample.drawn),
        }
    }

    pub(crate) fn value(self) -> f64 {
        self.value
    }

    /// How many independent pages would have given as certain a fraction.
    pub(crate) fn sample_size(self) -> f64 {
        1.0 / self.spread
    }
}

/// Of how many pages drawn at random how many were touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub(crate) touched: u32,
    pub(crate) drawn: u32,
}

impl Sample {
    /// `touched` of `drawn` pages; more touched than drawn counts as all, and a sample of no pages says nothing.
    #[must_use]
    pub fn new(touched: u32, drawn: u32) -> Self {
        Self {
            touched: touched.min(drawn),
            drawn,
        }
    }

    pub(crate) fn fraction(self) -> f64 {
        f64::from(self.touched) / f64::from(self.drawn)
    }
}
