//! Whether a fleet keeps within its budget, or has a reason not to.

use std::time::Duration;

/// Memory that a guest's process needs besides its guest's, MiB: what the manager reckons with.
const OVERHEAD_MIB: u64 = 6;

/// Memory that the manager needs, and what it keeps free, MiB.
const MANAGER_MIB: u64 = 12;

/// Part of the budget that may be exceeded, as a divisor: 2 %.
const TOLERANCE: u64 = 50;

/// How long a reason counts after it has ended: pages are compressed and written until then.
pub(crate) const GRACE: Duration = Duration::from_secs(6);

/// How long the cut itself is a reason: the manager has heard of it, and tells its guests.
const TELLING: Duration = Duration::from_millis(500);

/// No reason counts for longer than this after it began.
const LONGEST: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Budget {
    sizes_mib: u64,
    overheads_mib: u64,
    minimums_mib: u64,
    largest_mib: u64,
    /// What holds by the manager's word, bytes.
    pub(crate) bytes: u64,
    /// When it was last lowered.
    pub(crate) cut: Option<Duration>,
    /// A reason that counted, when it began and when it was seen last.
    reason: Option<(&'static str, Duration, Duration)>,
}

/// What a sample is.
#[derive(Debug, PartialEq)]
pub(crate) enum Sample {
    Within,
    /// So many percent over, for a reason.
    Explained(f64, &'static str),
    /// So many percent over, for none.
    Exceeded(f64),
}

impl Budget {
    /// For guests of these sizes and minimums, MiB.
    pub(crate) fn new(guests: impl Iterator<Item = (u64, u64)>) -> Self {
        let guests: Vec<_> = guests.collect();
        let mut budget = Self {
            sizes_mib: guests.iter().map(|(size, _)| size).sum(),
            overheads_mib: guests.len() as u64 * OVERHEAD_MIB + MANAGER_MIB,
            minimums_mib: guests.iter().map(|(_, min)| min).sum(),
            largest_mib: guests.iter().map(|(size, _)| *size).max().unwrap_or(0),
            bytes: 0,
            cut: None,
            reason: None,
        };
        budget.bytes = budget.usual_mib() << 20;
        budget
    }

    /// A budget with which not everything fits.
    pub(crate) fn usual_mib(&self) -> u64 {
        self.overheads_mib + self.sizes_mib * 3 / 4
    }

    /// One with which everything does.
    pub(crate) fn ample_mib(&self) -> u64 {
        (self.overheads_mib + self.sizes_mib) * 6 / 5
    }

    /// The smallest that can be kept where one guest, `weak`, gives up nothing.
    pub(crate) fn least_mib(&self, weak: Weak) -> u64 {
        let kept = match weak {
            Weak::None => 0,
            Weak::One => self.largest_mib,
        };
        self.overheads_mib + (self.minimums_mib * 5 / 4 + kept).max(self.sizes_mib / 2)
    }

    pub(crate) fn leaves_room_for_a_weak_one(&self) -> bool {
        self.bytes >= self.least_mib(Weak::One) << 20
    }

    /// What the manager says that the budget is.
    pub(crate) fn is_told(&mut self, bytes: u64, now: Duration) {
        if bytes < self.bytes {
            self.cut = Some(now);
        }
        self.bytes = bytes;
    }

    /// Judges a sample of `used` bytes; `reason` is why more than the budget may be in use now, if there is one.
    pub(crate) fn judge(&mut self, used: u64, reason: Option<&'static str>, now: Duration) -> Sample {
        let cut = self.cut.filter(|cut| now <= *cut + TELLING);
        if let Some(name) = reason.or(cut.map(|_| "budget_cut")) {
            let since = match self.reason {
                Some((before, since, last)) if before == name && now <= last + GRACE => since,
                _ => now,
            };
            self.reason = Some((name, since, now));
        }
        let percent = (used as f64 / self.bytes.max(1) as f64 - 1.0) * 100.0;
        if used <= self.bytes + self.bytes / TOLERANCE {
            return Sample::Within;
        }
        match self.reason_at(now) {
            Some(name) => Sample::Explained(percent, name),
            None => Sample::Exceeded(percent),
        }
    }

    /// The reason that counts at a time.
    pub(crate) fn reason_at(&self, now: Duration) -> Option<&'static str> {
        let (name, since, last) = self.reason?;
        (now <= last + GRACE && now <= since + LONGEST).then_some(name)
    }
}

/// Whether there is a guest that can give up nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weak {
    None,
    One,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_reason_counts_for_a_while_and_not_for_ever() {
        let mut budget = Budget::new([(64, 8)].into_iter());
        let (limit, over) = (budget.bytes, budget.bytes + budget.bytes / 20);
        assert_eq!(budget.judge(limit + limit / 60, None, SECOND), Sample::Within);
        assert!(matches!(budget.judge(over, None, SECOND), Sample::Exceeded(_)));
        assert!(matches!(
            budget.judge(over, Some("a"), SECOND * 2),
            Sample::Explained(_, "a")
        ));
        assert!(matches!(
            budget.judge(over, None, SECOND * 7),
            Sample::Explained(_, "a")
        ));
        assert!(matches!(
            budget.judge(over, None, SECOND * 9),
            Sample::Exceeded(_)
        ));
        for second in 10..70 {
            let sample = budget.judge(over, Some("b"), SECOND * second);
            assert!(
                matches!(sample, Sample::Explained(_, "b")),
                "{second}: {sample:?}"
            );
        }
        assert!(matches!(
            budget.judge(over, Some("b"), SECOND * 75),
            Sample::Exceeded(_)
        ));
    }

    #[test]
    fn a_cut_is_what_lowers_it() {
        let mut budget = Budget::new([(64, 8)].into_iter());
        budget.is_told(budget.bytes + 1, SECOND);
        assert_eq!(budget.cut, None);
        let over = budget.bytes;
        budget.is_told(over * 3 / 4, SECOND);
        assert_eq!(budget.cut, Some(SECOND));
        let soon = SECOND + TELLING / 2;
        assert!(matches!(
            budget.judge(over, None, soon),
            Sample::Explained(_, "budget_cut")
        ));
        assert!(matches!(
            budget.judge(over, None, SECOND * 6),
            Sample::Explained(_, "budget_cut")
        ));
        assert!(matches!(
            budget.judge(over, None, SECOND * 8),
            Sample::Exceeded(_)
        ));
        budget.is_told(over, SECOND * 9);
        assert!(budget.least_mib(Weak::None) < budget.usual_mib());
        assert!(budget.usual_mib() < budget.ample_mib());
    }
}
