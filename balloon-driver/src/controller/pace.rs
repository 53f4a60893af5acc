//! How fast to ask: twice as fast while the guest keeps up, half as fast when it falls behind.

use std::time::Duration;

use super::{Limits, Observation};

/// The rate of inflation and the progress it makes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Frames per second.
    rate: u64,
    /// The largest size seen in this attempt.
    reached: u64,
    stuck: Duration,
}

impl Pace {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            rate: limits.slowest,
            reached: 0,
            stuck: Duration::ZERO,
        }
    }

    /// The attempt is over.
    pub(super) fn rest(&mut self, ballooned: u64) {
        self.reached = ballooned;
        self.stuck = Duration::ZERO;
    }

    /// Whether the guest has not given one more frame for too long. Call once per step while it owes some.
    ///
    /// Only time in which the guest spoke counts: one that says nothing at all is not out of memory, it is gone.
    pub(super) fn is_stuck(&mut self, seen: &Observation, limits: &Limits) -> bool {
        let ballooned = seen.ballooned.value;
        if ballooned > self.reached {
            self.rest(ballooned);
            return false;
        }
        if seen.ballooned.age < seen.elapsed {
            self.stuck += seen.elapsed;
        }
        let stuck = self.stuck >= limits.no_progress;
        if stuck {
            self.rest(ballooned);
            self.rate = limits.slowest;
        }
        stuck
    }

    /// How many more frames to ask for now.
    pub(super) fn next(&mut self, commanded: u64, ballooned: u64, elapsed: Duration, limits: &Limits) -> u64 {
        let behind = commanded.saturating_sub(ballooned);
        let step = self.step(elapsed);
        if behind == 0 {
            self.rest(ballooned);
            let doubled = self.rate.saturating_mul(2).min(limits.fastest);
            self.rate = if commanded == 0 { self.rate } else { doubled };
        } else if behind > step {
            self.rate = (self.rate / 2).max(limits.slowest);
            // Nothing more on top of what it cannot do yet.
            return 0;
        }
        self.step(elapsed)
    }

    fn step(&self, elapsed: Duration) -> u64 {
        let frames = u128::from(self.rate) * elapsed.as_millis() / 1000;
        u64::try_from(frames).unwrap_or(u64::MAX)
    }
}
