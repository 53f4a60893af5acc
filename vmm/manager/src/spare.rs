//! One descriptor in reserve: to say that there are no more.
//!
//! Where a process has no descriptor left it cannot even accept a connection to refuse it, and the other end waits for
//! nothing. With one that is given up for that moment it can.

use std::fs::File;
use std::io;

/// A descriptor that stands for nothing.
#[derive(Debug)]
pub(super) struct Spare(Option<File>);

impl Spare {
    pub(super) fn new() -> Self {
        let mut spare = Self(None);
        spare.regain();
        spare
    }

    /// Gives the descriptor up for `use_it`, which may take its place.
    pub(super) fn lend<T>(&mut self, use_it: impl FnOnce() -> Option<T>) -> Option<T> {
        self.0.take()?;
        use_it()
    }

    /// Takes a descriptor again, once there is one.
    pub(super) fn regain(&mut self) {
        if self.0.is_none() {
            self.0 = File::open("/dev/null").ok();
        }
    }
}

/// `error` in words, with what to do about it where it is a limit that is reached.
pub(super) fn reason(error: &io::Error) -> String {
    match levy_protocol::cure(error) {
        Some(cure) => format!("{error}; {cure}"),
        None => error.to_string(),
    }
}
