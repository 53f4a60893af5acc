//! Whether a balloon answers.

use std::time::Duration;

use crate::Pages;

/// Tells a slow balloon from a dead one by its progress.
///
/// The driver's word is not needed: what counts is whether the size moves towards what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonWatch {
    patience: Duration,
    stalled: Duration,
    last: Pages,
}

impl BalloonWatch {
    /// A balloon this close to what was asked has done it: drivers' controllers take goals that differ by less for one
    /// goal, and would otherwise be given up for the rest of a MiB that they never mean to bring.
    pub const SLACK: Pages = Pages::new(256);

    /// A watch that gives a balloon up after `patience` without progress.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            stalled: Duration::ZERO,
            last: Pages::ZERO,
        }
    }

    /// Takes in what was `asked` and what the balloon's size is, `elapsed` after the last time. Returns whether the
    /// balloon answers: it has not been away from what was asked by more than [`SLACK`](Self::SLACK), without moving
    /// towards it, for longer than the patience. A balloon given up is taken back at its next progress, and when what
    /// it has is what is asked: a caller that asks nothing more of it would otherwise never learn better.
    pub fn observe(&mut self, asked: Pages, size: Pages, elapsed: Duration) -> bool {
        let left = asked.get().abs_diff(size.get());
        let nearer = left < asked.get().abs_diff(self.last.get());
        self.last = size;
        if nearer || left <= Self::SLACK.get() {
            self.stalled = Duration::ZERO;
        } else {
            self.stalled = self.stalled.saturating_add(elapsed);
        }
        self.answers()
    }

    /// What the last observation returned.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.stalled <= self.patience
    }
}

impl Default for BalloonWatch {
    /// Five seconds: drivers poll once a second.
    fn default() -> Self {
        Self::new(Duration::from_secs(5))
    }
}
