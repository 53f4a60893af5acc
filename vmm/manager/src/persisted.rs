//! What the file says that the next manager reads, on its way from the thread that wrote it to the one that tells guests.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use super::lock::Lock;
use super::manager::Snapshot;

/// The newest that is written, until it is taken.
#[derive(Debug)]
pub(super) struct Persisted {
    snapshot: Lock<Option<Snapshot>>,
    wake: OwnedFd,
}

impl Persisted {
    /// # Errors
    /// When the system has no descriptor to spare.
    pub(super) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            snapshot: Lock::default(),
            wake: eventfd(0, flags)?,
        })
    }

    /// `snapshot` is written; it is newer than what was put here before.
    pub(super) fn put(&self, snapshot: Snapshot) {
        *self.snapshot.lock() = Some(snapshot);
        // Refused only where the counter is full, and then it is readable.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// What was written since the last time.
    pub(super) fn take(&self) -> Option<Snapshot> {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        self.snapshot.lock().take()
    }
}

/// Readable while there is something to take.
impl AsFd for Persisted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
