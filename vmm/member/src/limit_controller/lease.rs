//! A guest's limit, and what becomes of it when the manager that set it is not heard of any more.
//!
//! A limit is a lease. Every word of the manager about it renews it, and it holds for [`TERM`] without one: long enough
//! for a manager that stalls or is replaced. When the term is over the guest keeps what it holds and gets no more, so
//! that guests without a manager never exceed together what they had. It is never without a limit again.

use std::time::{Duration, Instant};

/// How long a limit holds after the manager last spoke of it.
pub(super) const TERM: Duration = Duration::from_secs(60);

/// What one guest's process may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lease {
    /// Granted by a manager that may speak again: bytes, `None` for no limit.
    Granted {
        /// The limit.
        limit: Option<u64>,
        /// When it was last spoken of.
        renewed: Instant,
    },
    /// The manager went away before it ever set a limit: none is waited for.
    Forsaken,
    /// Its term is over: bytes.
    Expired(u64),
}

impl Lease {
    /// No limit for a guest that has just been admitted: the first one is under way.
    pub(super) fn begin(now: Instant) -> Self {
        Self::Granted {
            limit: None,
            renewed: now,
        }
    }

    /// A manager says at `now` that `limit` bytes may be held.
    pub(super) fn renew(&mut self, now: Instant, limit: Option<u64>) {
        *self = Self::Granted { limit, renewed: now };
    }

    /// The manager is gone. A limit holds on for its term; without one there is nothing to wait for.
    pub(super) fn lose(&mut self) {
        if let Self::Granted { limit: None, .. } = self {
            *self = Self::Forsaken;
        }
    }

    /// The limit that holds at `now` for a process that holds `held` bytes, `None` where that cannot be measured. No limit
    /// only while the first manager is there.
    pub(super) fn limit(&mut self, now: Instant, held: Option<u64>) -> Option<u64> {
        match *self {
            Self::Granted { limit, renewed } if now.saturating_duration_since(renewed) < TERM => limit,
            Self::Granted { limit, .. } => self.expire(limit, held),
            Self::Forsaken => self.expire(None, held),
            Self::Expired(limit) => Some(limit),
        }
    }

    /// What is held is all there is from now on; a process above its limit has still to come down to that.
    fn expire(&mut self, limit: Option<u64>, held: Option<u64>) -> Option<u64> {
        let least = [limit, held].into_iter().flatten().min();
        if let Some(least) = least {
            *self = Self::Expired(least);
        }
        least
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SECOND: Duration = Duration::from_secs(1);

    /// A lease of `limit` granted at the time that is returned with it.
    fn granted(limit: Option<u64>) -> (Lease, Instant) {
        let now = Instant::now();
        let mut lease = Lease::begin(now);
        lease.renew(now, limit);
        (lease, now)
    }

    #[test]
    fn the_last_limit_holds_for_its_term_and_then_what_is_held() {
        let (mut lease, start) = granted(Some(100 * MIB));
        lease.lose();
        let last = start + TERM - SECOND;
        assert_eq!(lease.limit(last, Some(60 * MIB)), Some(100 * MIB));
        assert_eq!(lease.limit(start + TERM, Some(70 * MIB)), Some(70 * MIB));
        // Neither room that it makes nor time gives it more.
        for held in [50, 70, 90] {
            let hours = start + 3600 * SECOND * held;
            assert_eq!(lease.limit(hours, Some(u64::from(held) * MIB)), Some(70 * MIB));
        }
    }

    #[test]
    fn a_process_above_its_limit_does_not_keep_the_excess() {
        let (mut lease, start) = granted(Some(100 * MIB));
        assert_eq!(lease.limit(start + TERM, Some(130 * MIB)), Some(100 * MIB));
    }

    #[test]
    fn a_manager_that_stalls_is_as_good_as_gone_and_one_that_speaks_is_not() {
        let (mut lease, start) = granted(Some(100 * MIB));
        let mut now = start;
        for _ in 0..200 {
            now += SECOND;
            lease.renew(now, Some(100 * MIB));
            assert_eq!(lease.limit(now, Some(MIB)), Some(100 * MIB));
        }
        // Nothing is closed, nothing is said.
        assert_eq!(lease.limit(now + TERM, Some(40 * MIB)), Some(40 * MIB));
    }

    #[test]
    fn the_next_manager_lifts_it_and_its_loss_counts_anew() {
        let (mut lease, start) = granted(Some(100 * MIB));
        let later = start + 10 * TERM;
        assert_eq!(lease.limit(later, Some(40 * MIB)), Some(40 * MIB));
        lease.renew(later, Some(80 * MIB));
        lease.lose();
        assert_eq!(lease.limit(later + TERM - SECOND, Some(60 * MIB)), Some(80 * MIB));
        assert_eq!(lease.limit(later + TERM, Some(60 * MIB)), Some(60 * MIB));
    }

    #[test]
    fn without_a_limit_from_its_manager_a_guest_keeps_what_it_has_at_the_loss() {
        let mut lease = Lease::begin(Instant::now());
        let now = Instant::now();
        assert_eq!(lease.limit(now, Some(5 * MIB)), None);
        lease.lose();
        assert_eq!(lease.limit(now, Some(6 * MIB)), Some(6 * MIB));
        assert_eq!(lease.limit(now, Some(7 * MIB)), Some(6 * MIB));
        // One that never says a word is not a manager either.
        let mut lease = Lease::begin(now);
        assert_eq!(lease.limit(now + TERM, Some(9 * MIB)), Some(9 * MIB));
    }

    #[test]
    fn what_cannot_be_measured_is_never_a_reason_for_more() {
        let (mut lease, start) = granted(Some(100 * MIB));
        assert_eq!(lease.limit(start + TERM, None), Some(100 * MIB));
        let (mut lease, start) = granted(None);
        assert_eq!(lease.limit(start + TERM, None), None);
        assert_eq!(lease.limit(start + TERM, Some(MIB)), Some(MIB));
    }
}
