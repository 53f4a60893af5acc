//! The time that a fleet was watched.

use std::time::{Duration, Instant};

/// Longest time between two looks that counts in full: a machine that stands still, or gives the harness no CPU, gives
/// the fleet none either.
const LONGEST_LOOK: Duration = Duration::from_millis(500);

/// Grows from look to look, by no more than [`LONGEST_LOOK`].
#[derive(Debug)]
pub(crate) struct Clock {
    last: Instant,
    now: Duration,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            last: Instant::now(),
            now: Duration::ZERO,
        }
    }

    pub(crate) fn look(&mut self) {
        let passed = self.last.elapsed().min(LONGEST_LOOK);
        self.last = Instant::now();
        self.now += passed;
    }

    pub(crate) fn now(&self) -> Duration {
        self.now
    }
}
