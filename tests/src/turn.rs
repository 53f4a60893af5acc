//! Tests of one program that take turns: emulated hosts have one CPU, on which guests that boot together only starve each
//! other.

use std::sync::{Mutex, MutexGuard, PoisonError};

static TURN: Mutex<()> = Mutex::new(());

/// The right to boot guests, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _held: MutexGuard<'static, ()>,
}

/// Waits until no other test of this program has its turn.
#[must_use]
pub fn turn() -> Turn {
    // A test that failed in its turn says so itself.
    let held = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Turn { _held: held }
}
