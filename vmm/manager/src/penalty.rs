//! What a process that breaks the rules pays: it is kept out for a while that doubles with each time.
//!
//! A process that starts again and again costs the manager little, and one that did it once by mistake is back soon.

use std::time::{Duration, Instant};

/// Longest time that a process is kept out.
const LONGEST_BAR: Duration = Duration::from_secs(64);

/// How a guest's process behaved on its connections.
#[derive(Debug, Clone, Copy, Default)]
pub struct Penalty {
    /// How often it was cut off for breaking the rules.
    pub cut_offs: u32,
    barred_until: Option<Instant>,
}

impl Penalty {
    /// It broke the rules.
    pub(super) fn offend(&mut self, now: Instant) {
        self.cut_offs = self.cut_offs.saturating_add(1);
        let bar = Duration::from_secs(1 << self.cut_offs.min(6)).min(LONGEST_BAR);
        self.barred_until = Some(now + bar);
    }

    /// Whole seconds for which it is kept out from `now` on, if it is.
    pub(super) fn barred(&self, now: Instant) -> Option<u64> {
        let left = self.barred_until?.checked_duration_since(now)?;
        Some(left.as_secs() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_offends_again_stays_out_longer() {
        let mut penalty = Penalty::default();
        let now = Instant::now();
        assert_eq!(penalty.barred(now), None);
        penalty.offend(now);
        assert_eq!(penalty.barred(now), Some(3));
        assert_eq!(penalty.barred(now + Duration::from_millis(2001)), None);
        for _ in 0..40 {
            penalty.offend(now);
        }
        assert_eq!(penalty.barred(now), Some(LONGEST_BAR.as_secs() + 1));
    }
}
