//! What happens to a guest when nothing else does, and when.

use std::time::{Duration, Instant};

/// How long a panicked kernel may take to restart before it counts as ended.
const PANIC_GRACE: Duration = Duration::from_secs(3);

/// What is due, each at its own time. The guest brings nothing of it about twice: what it does again and again neither
/// moves a time nor takes the place of a stop that was asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Dues {
    /// Until then the agent is to be ready.
    ready: Option<Instant>,
    /// Then a guest that was asked to switch itself off is taken down.
    power_off: Option<Instant>,
    /// Then a panicked kernel has not restarted.
    restart: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhatIsDue {
    Ready,
    PowerOff,
    Restart,
}

impl Dues {
    /// The agent is to be ready by `at`.
    pub(super) fn ready_by(at: Option<Instant>) -> Self {
        Self {
            ready: at,
            ..Self::default()
        }
    }

    /// The agent is ready.
    pub(super) fn is_ready(&mut self) {
        self.ready = None;
    }

    /// The guest was asked at `now` to switch itself off within `grace`; the last asker's grace is the one that counts.
    pub(super) fn stop(&mut self, now: Instant, grace: Duration) {
        // A grace beyond what the clock can say is none that ends.
        self.power_off = now.checked_add(grace);
        self.ready = None;
    }

    /// The guest's kernel panicked at `now`, for the first time or again.
    pub(super) fn panicked(&mut self, now: Instant) {
        self.ready = None;
        self.restart.get_or_insert(now + PANIC_GRACE);
    }

    /// What is due first.
    pub(super) fn first(&self) -> Option<(Instant, WhatIsDue)> {
        let all = [
            (self.power_off, WhatIsDue::PowerOff),
            (self.restart, WhatIsDue::Restart),
            (self.ready, WhatIsDue::Ready),
        ];
        let known = all.into_iter().filter_map(|(at, what)| Some((at?, what)));
        known.min_by_key(|(at, _)| *at)
    }

    /// What is due at `now`.
    pub(super) fn at(&self, now: Instant) -> Option<WhatIsDue> {
        let (at, what) = self.first()?;
        (at <= now).then_some(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn panics_without_end_neither_hold_off_a_stop_nor_the_end_of_a_panicked_guest() {
        let began = Instant::now();
        let mut stopped = Dues::default();
        stopped.stop(began, 2 * SECOND);
        let mut panicking = Dues::ready_by(Some(began + SECOND / 2));
        for tenths in 0..20 {
            let now = began + SECOND * tenths / 10;
            assert_eq!(stopped.at(now), None);
            stopped.panicked(now);
            panicking.panicked(now);
        }
        assert_eq!(stopped.at(began + 2 * SECOND), Some(WhatIsDue::PowerOff));
        assert_eq!(panicking.at(began + 2 * SECOND), None);
        assert_eq!(panicking.at(began + PANIC_GRACE), Some(WhatIsDue::Restart));
    }

    #[test]
    fn what_was_asked_for_last_counts_and_a_ready_guest_owes_nothing() {
        let began = Instant::now();
        let mut dues = Dues::ready_by(Some(began + SECOND));
        assert_eq!(dues.first(), Some((began + SECOND, WhatIsDue::Ready)));
        dues.is_ready();
        assert_eq!(dues.first(), None);
        for grace in [9 * SECOND, SECOND, Duration::MAX] {
            dues.stop(began, grace);
            assert_eq!(dues.first().map(|(at, _)| at), began.checked_add(grace));
        }
    }
}
