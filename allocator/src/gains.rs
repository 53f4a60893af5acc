//! How fast the averages follow the samples.

use std::fmt;

/// The weights a new sample gets in the fast and in the slow average, each above 0 and at most 1.
///
/// The gains of the published system were never published. The default is derived from two requirements, per
/// period of 30 s: a rise must be in the estimate to 95 % after two periods, and a fall must be forgotten to one half
/// after four (two minutes), so that a guest which works one minute in four is not taxed as if it slept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gains {
    fast: f64,
    slow: f64,
}

impl Gains {
    /// Gains given directly.
    ///
    /// # Errors
    /// When one is not a number, not above 0, above 1, or the slow one is above the fast one.
    pub fn new(fast: f64, slow: f64) -> Result<Self, GainsError> {
        if slow > 0.0 && fast <= 1.0 && slow <= fast {
            Ok(Self { fast, slow })
        } else {
            Err(GainsError { fast, slow })
        }
    }

    /// Gains with which 95 % of a rise is in the estimate after `rise` periods, and half of a fall after `half_life`
    /// periods: `1 - 0.05^(1/rise)` and `1 - 0.5^(1/half_life)`.
    ///
    /// # Errors
    /// As [`Gains::new`], with the gains that come out.
    pub fn from_response(rise: f64, half_life: f64) -> Result<Self, GainsError> {
        Self::new(
            1.0 - 0.05_f64.powf(1.0 / rise),
            1.0 - 0.5_f64.powf(1.0 / half_life),
        )
    }

    /// The fast average's gain.
    #[must_use]
    pub fn fast(self) -> f64 {
        self.fast
    }

    /// The slow average's gain.
    #[must_use]
    pub fn slow(self) -> f64 {
        self.slow
    }
}

impl Default for Gains {
    /// `from_response(2, 4)`: 0.7764 and 0.1591.
    fn default() -> Self {
        Self {
            fast: 1.0 - 0.05_f64.sqrt(),
            slow: 1.0 - 0.5_f64.powf(0.25),
        }
    }
}

/// Gains that cannot make an average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GainsError {
    /// The fast gain.
    pub fast: f64,
    /// The slow gain.
    pub slow: f64,
}

impl fmt::Display for GainsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "gains of {} (fast) and {} (slow): both must be above 0 and at most 1, the slow one not above the fast one",
            self.fast, self.slow
        )
    }
}

impl std::error::Error for GainsError {}
