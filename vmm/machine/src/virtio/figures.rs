//! Figures of a device that are read without its lock, which its guest may keep busy.

use std::sync::{Arc, Mutex};

use crate::lock::lock;

/// Clones are the same figures. They have a lock of their own, that is held while they are copied or counted up.
#[derive(Debug, Default)]
pub struct Figures<T>(Arc<Mutex<T>>);

impl<T: Clone> Figures<T> {
    /// Figures that begin as `first`.
    pub(super) fn new(first: T) -> Self {
        Self(Arc::new(Mutex::new(first)))
    }

    /// What they are now.
    pub fn get(&self) -> T {
        lock(&self.0).clone()
    }

    /// Changes them, in no time.
    pub(super) fn change(&self, change: impl FnOnce(&mut T)) {
        change(&mut lock(&self.0));
    }
}

impl<T> Clone for Figures<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}
