//! Other evidence of activity than sampling.

use std::time::Duration;

use crate::Pages;

/// A lower bound on a guest's active memory, from elsewhere than sampling, and its age.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Signal {
    /// What was seen or said.
    pub evidence: Evidence,
    /// How long ago.
    pub age: Duration,
}

/// What a signal says. What the host saw counts in full; what the guest says counts only where the host's own samples
/// cannot tell, because a guest may lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Evidence {
    /// The host saw this many different pages written during one period.
    Written(Pages),
    /// The host brought this many pages back from compression or swap during one period.
    Refaulted(Pages),
    /// The guest's statistics say that it uses this many pages.
    GuestStatistics(Pages),
    /// The guest says that its tasks stalled on memory for this part of the time (pressure stall information, 0 to
    /// 1). From [`Evidence::PRESSED`] on it counts as using all it holds, below in proportion.
    GuestPressure(f64),
}

impl Evidence {
    /// The part of time stalled at which a guest counts as using everything it holds: 10 %.
    pub const PRESSED: f64 = 0.1;

    /// The fraction of `private` pages that this says are active, and who says so.
    pub(crate) fn fraction(self, private: Pages) -> (f64, Witness) {
        let (fraction, witness) = match self {
            Self::Written(pages) | Self::Refaulted(pages) => (pages.of(private), Witness::Host),
            Self::GuestStatistics(pages) => (pages.of(private), Witness::Guest),
            Self::GuestPressure(part) => (part / Self::PRESSED, Witness::Guest),
        };
        // What is not a number says nothing.
        let fraction = if fraction.is_nan() { 0.0 } else { fraction };
        (fraction.clamp(0.0, 1.0), witness)
    }
}

/// Who vouches for a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Witness {
    Host,
    Guest,
}
