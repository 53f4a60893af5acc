//! What the manager was told of the limit, and what it has to hear at once.

use std::time::{Duration, Instant};

use levy_protocol::link::LimitStatus;

/// Shortest time between two messages.
const TELL_INTERVAL: Duration = Duration::from_millis(25);

/// What the manager was told last.
#[derive(Debug)]
pub(super) struct Told {
    status: LimitStatus,
    when: Instant,
    /// The manager has not heard it.
    pub(super) is_news: bool,
}

impl Told {
    pub(super) fn nothing(now: Instant) -> Self {
        Self {
            status: LimitStatus::default(),
            when: now,
            is_news: true,
        }
    }

    /// `status` where it cannot wait for the next report: who waits, and which limit holds by now.
    pub(super) fn tell(&mut self, now: Instant, status: LimitStatus) -> Option<LimitStatus> {
        let is_same = self.status.limit_bytes == status.limit_bytes
            && self.status.gated == status.gated
            && self.status.waiting == 0;
        let is_urgent = self.is_news || !is_same || status.waiting > 0;
        if !is_urgent || now.saturating_duration_since(self.when) < TELL_INTERVAL {
            return None;
        }
        (self.status, self.when, self.is_news) = (status, now, false);
        Some(status)
    }
}
