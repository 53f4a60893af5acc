//! The idle-memory tax.

use std::fmt;

/// The part of its idle memory that a guest may lose to others under pressure: τ, 0 to just below 1.
///
/// Kept as whole millionths, so that every price is a ratio of integers. An idle page costs `k = 1/(1 - τ)` times
/// what an active one costs. The largest tax is [`Tax::MAX`], k = 1,000,000: there a plan is, up to rounding, the
/// limit τ → 1, in which no guest holds an idle page while any active page is missing elsewhere, and what is left over
/// is divided by shares above the active memory.
///
/// ```
/// use allocator::Tax;
/// let tax = Tax::new(0.75)?;
/// assert_eq!(tax.idle_cost(), 4.0);
/// assert!(Tax::new(1.0).is_err());
/// # Ok::<(), allocator::TaxError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tax {
    millionths: u32,
}

/// What an active page costs, in units in which an idle page costs [`IDLE`].
pub(crate) const IDLE: u64 = 1_000_000;

impl Tax {
    /// No tax: shares alone decide.
    pub const NONE: Self = Self { millionths: 0 };
    /// The published default, 75 %.
    pub const DEFAULT: Self = Self { millionths: 750_000 };
    /// The largest tax, 99.9999 %.
    pub const MAX: Self = Self { millionths: 999_999 };

    /// A tax of `part` of idle memory, rounded to the nearest millionth.
    ///
    /// # Errors
    /// When `part` is not a number, below 0, or so near 1 that it rounds to 1: a price of infinity has no
    /// proportions; use [`Tax::MAX`] for the limit.
    pub fn new(part: f64) -> Result<Self, TaxError> {
        let millionths = (part * IDLE as f64).round();
        if !(0.0..IDLE as f64).contains(&millionths) {
            return Err(TaxError { part });
        }
        Ok(Self {
            millionths: millionths as u32,
        })
    }

    /// The tax as a part, 0 to below 1.
    #[must_use]
    pub fn part(self) -> f64 {
        f64::from(self.millionths) / IDLE as f64
    }

    /// k = 1/(1 - τ): what an idle page costs relative to an active one.
    #[must_use]
    pub fn idle_cost(self) -> f64 {
        IDLE as f64 / self.active_cost() as f64
    }

    /// What an active page costs where an idle page costs [`IDLE`]: 1 to 1,000,000.
    pub(crate) fn active_cost(self) -> u64 {
        IDLE - u64::from(self.millionths)
    }
}

impl Default for Tax {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for Tax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", f64::from(self.millionths) / 10_000.0)
    }
}

/// A tax outside 0 to below 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaxError {
    /// What was asked for.
    pub part: f64,
}

impl fmt::Display for TaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a tax of {} is not between 0 and 0.999999; for \"idle memory always goes first\" use 0.999999",
            self.part
        )
    }
}

impl std::error::Error for TaxError {}
