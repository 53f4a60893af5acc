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
    pub(super) fn offend(&mut self) {
        self.cut_offs = self.cut_offs.saturating_add(1);
        let bar = Duration::from_secs(1 << self.cut_offs.min(6)).min(LONGEST_BAR);
        self.barred_until = Some(Instant::now() + bar);
    }

    /// Whole seconds for which it is kept out, if it is.
    pub(super) fn barred(&self) -> Option<u64> {
        let left = self.barred_until?.checked_duration_since(Instant::now())?;
        Some(left.as_secs() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_offends_again_stays_out_longer() {
        let mut penalty = Penalty::default();
        assert_eq!(penalty.barred(), None);
        penalty.offend();
        assert!(penalty.barred().unwrap() <= 2);
        for _ in 0..40 {
            penalty.offend();
        }
        assert!((60..=LONGEST_BAR.as_secs()).contains(&penalty.barred().unwrap()));
    }
}
