//! Amounts of free memory that separate the states.

use std::fmt;

use crate::Pages;
use crate::state::State;

/// Free memory below which each state begins, and how far above it must rise to be left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    high: Pages,
    soft: Pages,
    hard: Pages,
    low: Pages,
    split: Pages,
    hysteresis: f64,
}

/// The amounts of a [`Thresholds`], for [`Thresholds::new`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Levels {
    /// What reclaiming aims for.
    pub high: Pages,
    /// Below: soft.
    pub soft: Pages,
    /// Below: hard.
    pub hard: Pages,
    /// Below: low.
    pub low: Pages,
    /// Below: huge pages are split, so that their parts can be shared before memory is short.
    pub split: Pages,
}

impl Thresholds {
    /// How far above a threshold free memory must be to leave for the better state: one eighth of it. The published
    /// system has a hysteresis too, but not its amount.
    pub const HYSTERESIS: f64 = 0.125;

    /// The published 6, 4, 2 and 1 % of `total`.
    #[must_use]
    pub fn published(total: Pages) -> Self {
        Self::of_high(total.part(0.06), [4.0 / 6.0, 2.0 / 6.0, 1.0 / 6.0], 1.0)
    }

    /// The absolute values of ESXi 5 and 6 for big hosts. Their base, minFree, is 6 % of the first 4 GiB, 4 % of the
    /// next 8, 2 % of the next 16 and 1 % of the rest; soft, hard and low are 64, 32 and 16 % of it, and huge pages are
    /// split below four times it.
    #[must_use]
    pub fn sliding(total: Pages) -> Self {
        let mut rest = total;
        let mut min_free = Pages::ZERO;
        for (gib, part) in [(4, 0.06), (8, 0.04), (16, 0.02)] {
            let step = rest.min(Pages::from_mib(gib * 1024));
            min_free += step.part(part);
            rest -= step;
        }
        Self::of_high(min_free + rest.part(0.01), [0.64, 0.32, 0.16], 4.0)
    }

    /// Thresholds given directly, with the hysteresis as a part of each.
    ///
    /// # Errors
    /// When they are not in falling order (split, high, soft, hard, low), or the hysteresis is not a number from 0 to
    /// 1.
    pub fn new(levels: Levels, hysteresis: f64) -> Result<Self, ThresholdsError> {
        let Levels {
            high,
            soft,
            hard,
            low,
            split,
        } = levels;
        if !(0.0..=1.0).contains(&hysteresis) {
            return Err(ThresholdsError::Hysteresis(hysteresis));
        }
        if !(split >= high && high >= soft && soft >= hard && hard >= low) {
            return Err(ThresholdsError::Order(levels));
        }
        Ok(Self {
            high,
            soft,
            hard,
            low,
            split,
            hysteresis,
        })
    }

    fn of_high(high: Pages, [soft, hard, low]: [f64; 3], split: f64) -> Self {
        Self {
            high,
            soft: high.part(soft),
            hard: high.part(hard),
            low: high.part(low),
            split: high.part(split),
            hysteresis: Self::HYSTERESIS,
        }
    }

    /// The free memory that reclaiming aims for: enough to be back in the high state. Memory to hand out is what the
    /// host has less this.
    #[must_use]
    pub fn goal(&self) -> Pages {
        self.above(self.high)
    }

    /// Free memory below which huge pages should be split.
    #[must_use]
    pub fn split(&self) -> Pages {
        self.split
    }

    /// Free memory below which `state` begins; for [`State::High`] the amount to come back to.
    #[must_use]
    pub fn of(&self, state: State) -> Pages {
        match state {
            State::High => self.high,
            State::Soft => self.soft,
            State::Hard => self.hard,
            State::Low => self.low,
        }
    }

    /// The state that `free` memory is short enough for.
    pub(crate) fn entered(&self, free: Pages) -> State {
        if free < self.low {
            State::Low
        } else if free < self.hard {
            State::Hard
        } else if free < self.soft {
            State::Soft
        } else {
            State::High
        }
    }

    /// The best state that `free` memory is clearly enough for.
    pub(crate) fn left_for(&self, free: Pages) -> State {
        if free >= self.above(self.high) {
            State::High
        } else if free >= self.above(self.soft) {
            State::Soft
        } else if free >= self.above(self.hard) {
            State::Hard
        } else {
            State::Low
        }
    }

    fn above(&self, threshold: Pages) -> Pages {
        threshold + threshold.part(self.hysteresis)
    }
}

/// Thresholds that cannot separate states.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum ThresholdsError {
    /// They do not fall.
    Order(Levels),
    /// The hysteresis is not a number from 0 to 1.
    Hysteresis(f64),
}

impl fmt::Display for ThresholdsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order(Levels {
                high,
                soft,
                hard,
                low,
                split,
            }) => write!(
                f,
                "thresholds must fall from split ({split}) over high ({high}), soft ({soft}) and hard ({hard}) to low \
                 ({low})"
            ),
            Self::Hysteresis(part) => write!(f, "a hysteresis of {part} is not a part from 0 to 1"),
        }
    }
}

impl std::error::Error for ThresholdsError {}
