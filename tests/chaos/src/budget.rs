//! Whether a fleet keeps within its budget, or has a reason not to.

use std::time::Duration;

/// Memory that a guest's process needs besides its guest's, MiB: what the manager reckons with.
const OVERHEAD_MIB: u64 = 6;

/// Memory that the manager needs, and what it keeps free, MiB.
const MANAGER_MIB: u64 = 12;

/// Part of the budget that may be exceeded, as a divisor: 2 %.
const TOLERANCE: u64 = 50;

/// How long guests may take to follow a cut: pages are compressed and written until then.
pub(crate) const FOLLOWING: Duration = Duration::from_secs(6);

/// How long a manager is looked for after it has come back: what is held is counted at another time than it is seen.
const NOTICING: Duration = Duration::from_secs(1);

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
    reason: Option<(Reason, Duration, Duration)>,
}

/// Why more than the budget may be in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// There is no manager that could act.
    NoManager,
    /// A guest that cannot follow a cut, or a new manager, is stopped.
    GuestStopped,
    BudgetCut,
}

impl Reason {
    /// As counters name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoManager => "no_manager",
            Self::GuestStopped => "guest_stopped",
            Self::BudgetCut => "budget_cut",
        }
    }

    /// How long it counts after it has ended.
    fn grace(self) -> Duration {
        match self {
            Self::NoManager => NOTICING,
            Self::GuestStopped | Self::BudgetCut => FOLLOWING,
        }
    }
}

/// What a sample is.
#[derive(Debug, PartialEq)]
pub(crate) enum Sample {
    Within,
    /// So many percent over, for a reason.
    Explained(f64, Reason),
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
    pub(crate) fn judge(&mut self, used: u64, reason: Option<Reason>, now: Duration) -> Sample {
        let cut = self.cut.filter(|cut| now <= *cut + TELLING);
        if let Some(reason) = reason.or(cut.map(|_| Reason::BudgetCut)) {
            let since = match self.reason {
                Some((before, since, last)) if before == reason && now <= last + reason.grace() => since,
                _ => now,
            };
            self.reason = Some((reason, since, now));
        }
        let percent = (used as f64 / self.bytes.max(1) as f64 - 1.0) * 100.0;
        if used <= self.bytes + self.bytes / TOLERANCE {
            return Sample::Within;
        }
        match self.reason_at(now) {
            Some(reason) => Sample::Explained(percent, reason),
            None => Sample::Exceeded(percent),
        }
    }

    /// The reason that counts at a time.
    pub(crate) fn reason_at(&self, now: Duration) -> Option<Reason> {
        let (reason, since, last) = self.reason?;
        (now <= last + reason.grace() && now <= since + LONGEST).then_some(reason)
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
            budget.judge(over, Some(Reason::GuestStopped), SECOND * 2),
            Sample::Explained(_, Reason::GuestStopped)
        ));
        assert!(matches!(
            budget.judge(over, None, SECOND * 7),
            Sample::Explained(_, Reason::GuestStopped)
        ));
        assert!(matches!(
            budget.judge(over, None, SECOND * 9),
            Sample::Exceeded(_)
        ));
        for second in 10..=70 {
            let sample = budget.judge(over, Some(Reason::NoManager), SECOND * second);
            assert!(
                matches!(sample, Sample::Explained(_, Reason::NoManager)),
                "{second}: {sample:?}"
            );
        }
        assert!(matches!(
            budget.judge(over, Some(Reason::NoManager), SECOND * 71),
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
            Sample::Explained(_, Reason::BudgetCut)
        ));
        assert!(matches!(
            budget.judge(over, None, SECOND * 6),
            Sample::Explained(_, Reason::BudgetCut)
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
