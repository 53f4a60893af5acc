//! Confidence intervals of sampled fractions.

/// An interval of fractions, each 0 to 1, `low <= high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Interval {
    /// The standard normal quantile that leaves 2.5 % on each side.
    pub const TWO_SIDED_95: f64 = 1.959_964;

    /// The Wilson score interval of `fraction` measured on `size` pages, `z` standard errors wide on each side.
    ///
    /// Unlike the plain normal interval it is sound near 0 and 1, where most guests are. Without pages it is 0 to 1.
    #[must_use]
    pub fn wilson(fraction: f64, size: f64, z: f64) -> Self {
        if size <= 0.0 {
            return Self { low: 0.0, high: 1.0 };
        }
        let z2 = z * z / size;
        let centre = (fraction + z2 / 2.0) / (1.0 + z2);
        let reach = z / (1.0 + z2) * (fraction * (1.0 - fraction) / size + z2 / (4.0 * size)).sqrt();
        // `max` and `min` turn what is not a number into 0 and 1.
        Self {
            low: (centre - reach).max(0.0),
            high: (centre + reach).min(1.0),
        }
    }
}
