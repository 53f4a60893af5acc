//! The wait between two rounds of the manager, and for what is to be written down.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// Ends a wait.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Bell {
    pub(super) fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.heard.notify_all();
    }

    /// Waits until it is rung.
    pub(super) fn hear(&self) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.heard.wait_while(rung, |rung| !*rung);
        *waited.unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Waits until `latest`, or from `soonest` on until it is rung.
    pub(super) fn wait(&self, soonest: Instant, latest: Instant) {
        std::thread::sleep(soonest.saturating_duration_since(Instant::now()));
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let left = latest.saturating_duration_since(Instant::now());
        let waited = self.heard.wait_timeout_while(rung, left, |rung| !*rung);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}
