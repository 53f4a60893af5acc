//! What a bench has found so far, for the case that it cannot go on.

use std::sync::{Arc, Mutex, PoisonError};

use super::Report;

/// Results that are kept as soon as they are there. Clones share them.
#[derive(Clone, Debug)]
pub struct PartialResults(Arc<Mutex<Report>>);

impl PartialResults {
    /// An empty one, of the bench called `bench`.
    pub fn new(bench: &str) -> Self {
        Self(Arc::new(Mutex::new(Report::new(bench))))
    }

    /// Keeps `value` under `results.<path>`, in place of what was kept there before.
    ///
    /// # Panics
    /// As [`Report::set`].
    pub fn set(&self, path: &str, value: impl serde::Serialize) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .set(path, value);
    }

    /// The report of a bench that ended for `reason`: what was kept, and `results.failed`.
    pub fn failed(&self, reason: &str) -> Report {
        let mut report = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        report.set("failed", reason);
        report
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_found_before_the_failure_is_in_the_report() {
        let partial = PartialResults::new("demo");
        partial.set("arms", [1]);
        partial.clone().set("arms", [1, 2]);
        let report = partial.failed("guest a ended").to_json();
        assert_eq!(report["bench"], "demo");
        assert_eq!(
            report["results"],
            json!({"arms": [1, 2], "failed": "guest a ended"})
        );
    }
}
