//! Mutexes, whose holders cannot leave them half changed: a panic ends the process.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Waits for `mutex`.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
