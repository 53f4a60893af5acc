//! How much a guest's process may send: so much at once, and so much a second in the long run.

use std::time::{Duration, Instant};

/// Messages from one guest in a row, beyond those that [`PER_SECOND`] allows. A process that was held up may send what
/// it has saved.
const BURST: f64 = 120.0;

/// Messages a second that a guest may send in the long run: it has one to say, and where memory is short some forty
/// more.
const PER_SECOND: f64 = 60.0;

/// Most messages that are allowed for the time in which the manager did not listen: what fits a socket's buffer.
const MADE_UP: f64 = 8192.0;

/// How many at once, and how many a second in the long run.
#[derive(Debug)]
pub(super) struct RateLimiter {
    burst: f64,
    per_second: f64,
    left: f64,
    since: Instant,
}

impl RateLimiter {
    /// Messages on one connection.
    pub(super) fn of_messages(now: Instant) -> Self {
        Self::new(now, BURST, PER_SECOND)
    }

    pub(super) fn new(now: Instant, burst: f64, per_second: f64) -> Self {
        Self {
            burst,
            per_second,
            left: burst,
            since: now,
        }
    }

    /// Takes one; `false` when it is one too many.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.earn(now);
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }

    /// What could be sent while no thread listened for `missed` is allowed on top of the rest.
    pub(super) fn make_up_for(&mut self, missed: Duration) {
        self.left += (missed.as_secs_f64() * self.per_second).min(MADE_UP);
    }

    /// Whether nothing of it is used.
    pub(super) fn is_whole(&mut self, now: Instant) -> bool {
        self.earn(now);
        self.left >= self.burst
    }

    fn earn(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        let earned = passed.as_secs_f64() * self.per_second;
        self.since = now;
        if self.left < self.burst {
            self.left = (self.left + earned).min(self.burst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_uses_its_allowance_up_and_one_message_a_second_never_does() {
        let begin = Instant::now();
        let mut limiter = RateLimiter::of_messages(begin);
        let taken = (0..1000).take_while(|_| limiter.take(begin)).count();
        assert_eq!(taken, BURST as usize);
        assert!(limiter.take(begin + Duration::from_secs(1)));
        let mut steady = RateLimiter::of_messages(begin);
        assert!((0..1000).all(|second| steady.take(begin + Duration::from_secs(second))));
    }

    #[test]
    fn what_was_sent_while_the_manager_did_not_listen_is_no_flood() {
        let now = Instant::now();
        let mut limiter = RateLimiter::of_messages(now);
        limiter.make_up_for(Duration::from_secs(36));
        let taken = (0..10_000).take_while(|_| limiter.take(now)).count();
        assert_eq!(taken, (BURST + 36.0 * PER_SECOND) as usize);
        // However long it was: nothing can send more than a buffer holds.
        limiter.make_up_for(Duration::from_secs(1 << 40));
        assert!((0..100_000).take_while(|_| limiter.take(now)).count() < 10_000);
    }
}
