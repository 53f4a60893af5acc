//! The wait between two rounds of the manager, and for what is to be written down.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// Ends a wait.
#[derive(Debug, Default)]
pub(super) struct Trigger {
    fired: Mutex<bool>,
    changed: Condvar,
}

impl Trigger {
    pub(super) fn fire(&self) {
        *self.fired.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits until it is fired.
    pub(super) fn wait(&self) {
        let fired = self.fired.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_while(fired, |fired| !*fired);
        *waited.unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Waits until `latest`, or from `soonest` on until it is fired.
    pub(super) fn wait_between(&self, soonest: Instant, latest: Instant) {
        std::thread::sleep(soonest.saturating_duration_since(Instant::now()));
        let fired = self.fired.lock().unwrap_or_else(PoisonError::into_inner);
        let left = latest.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(fired, left, |fired| !*fired);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}
