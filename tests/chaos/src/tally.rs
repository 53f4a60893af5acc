//! What was done, what was seen, and what must not be.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use levy_bench::Report;

/// Something that must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Breach {
    WrongBytes,
    ReferencesMissing,
    BudgetExceeded,
    MinimumBroken,
    NotBack,
    SettingsLost,
    Abort,
    LeftBehind,
    /// The harness could not go on.
    Stuck,
}

impl Breach {
    pub(crate) const ALL: [Self; 9] = [
        Self::WrongBytes,
        Self::ReferencesMissing,
        Self::BudgetExceeded,
        Self::MinimumBroken,
        Self::NotBack,
        Self::SettingsLost,
        Self::Abort,
        Self::LeftBehind,
        Self::Stuck,
    ];

    /// Its name in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WrongBytes => "wrong_bytes",
            Self::ReferencesMissing => "references_missing",
            Self::BudgetExceeded => "budget_exceeded_samples",
            Self::MinimumBroken => "minimum_broken_samples",
            Self::NotBack => "not_back_in_time",
            Self::SettingsLost => "settings_lost",
            Self::Abort => "aborts",
            Self::LeftBehind => "left_behind",
            Self::Stuck => "stuck",
        }
    }
}

/// Failures of one kind that are described; further ones are only counted.
const DESCRIBED: usize = 12;

/// Times of one kind that are kept for the report.
const TIMES: usize = 20_000;

/// What a whole run has come to. All fleets share one.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    counts: BTreeMap<String, u64>,
    breaches: BTreeMap<Breach, u64>,
    skips: BTreeMap<String, u64>,
    failures: Vec<String>,
    back_seconds: Vec<f64>,
    most_over_percent: f64,
}

impl Tally {
    /// Counts `name`, a dotted path in the report.
    pub(crate) fn add(&self, name: &str, count: u64) {
        *self.inner().counts.entry(name.to_owned()).or_default() += count;
    }

    pub(crate) fn count(&self, name: &str) {
        self.add(name, 1);
    }

    pub(crate) fn of(&self, name: &str) -> u64 {
        self.inner().counts.get(name).copied().unwrap_or(0)
    }

    /// Something that this machine does not allow.
    pub(crate) fn skip(&self, reason: &str) {
        *self.inner().skips.entry(reason.to_owned()).or_default() += 1;
    }

    /// How long a guest took to come back.
    pub(crate) fn came_back(&self, seconds: f64) {
        let mut inner = self.inner();
        if inner.back_seconds.len() < TIMES {
            inner.back_seconds.push(seconds);
        }
    }

    /// A sample in which `percent` more than the budget was in use, for a reason.
    pub(crate) fn over(&self, percent: f64) {
        let mut inner = self.inner();
        inner.most_over_percent = inner.most_over_percent.max(percent);
    }

    /// Something that must not be happened `count` times; `tell` describes it where that is still wanted.
    pub(crate) fn breach(&self, breach: Breach, count: u64, tell: impl FnOnce() -> String) {
        let mut inner = self.inner();
        *inner.breaches.entry(breach).or_default() += count;
        let before = inner.failures.iter();
        if before.filter(|text| text.starts_with(breach.name())).count() < DESCRIBED {
            let text = format!("{}: {}", breach.name(), tell());
            eprintln!("chaos: {}", text.lines().next().unwrap_or_default());
            inner.failures.push(text);
        }
    }

    pub(crate) fn breaches(&self) -> u64 {
        self.inner().breaches.values().sum()
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.inner().failures.clone()
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let [kills, stalls, long] = ["kills", "stalls", "long_stalls"].map(|name| self.of(name));
        let [samples, checks] = ["budget.samples", "checks"].map(|name| self.of(name));
        let mut line = format!(
            "{kills} kills, {stalls} stalls ({long} long), {checks} full checks, {samples} budget samples"
        );
        for (breach, count) in &self.inner().breaches {
            let _ = write!(line, ", {} {count}", breach.name());
        }
        line
    }

    /// Everything, as `results`.
    pub(crate) fn report(&self) -> Report {
        let mut report = Report::new("chaos");
        let inner = self.inner();
        for (name, count) in &inner.counts {
            report.set(name, count);
        }
        for breach in Breach::ALL {
            let count = inner.breaches.get(&breach).copied().unwrap_or(0);
            report.set(breach.name(), count);
        }
        report.set("skipped", &inner.skips);
        report.set("budget.most_over_percent", inner.most_over_percent);
        let mut back = inner.back_seconds.clone();
        back.sort_by(f64::total_cmp);
        let at = |part: f64| back.get(((back.len() as f64 - 1.0) * part).max(0.0) as usize);
        report.set("back.times", back.len());
        report.set("back.p50_seconds", at(0.5));
        report.set("back.p99_seconds", at(0.99));
        report.set("back.max_seconds", at(1.0));
        report
    }

    fn inner(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
