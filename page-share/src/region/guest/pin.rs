//! Marks for I/O in flight: pages that a device or the kernel has pinned cannot be moved without losing what it writes,
//! and nothing in the kernel would tell us.

use std::sync::Arc;

use super::Guest;
use crate::region::run::PageRun;

/// While this exists, the engine leaves the pages where they are.
#[derive(Debug)]
#[must_use = "dropping the mark ends it"]
pub struct Pin {
    guest: Arc<Guest>,
    run: PageRun,
}

impl Pin {
    pub(crate) fn new(guest: &Arc<Guest>, run: PageRun) -> Option<Self> {
        let inside: u32 = guest.layout.clip(run).map(|part| part.count).sum();
        if inside != run.count {
            return None;
        }
        for page in run.pages() {
            if !guest.table.pin(page) {
                let pinned = PageRun::between(run.first, page).pages();
                pinned.for_each(|page| guest.table.unpin(page));
                return None;
            }
        }
        // A thread that claimed a page before it saw the mark finishes first. Owners never wait for users of guest
        // memory, so this ends.
        for page in run.pages() {
            while guest.table.is_held(page) {
                std::thread::yield_now();
            }
        }
        Some(Self {
            guest: guest.clone(),
            run,
        })
    }

    /// The pages.
    pub fn run(&self) -> PageRun {
        self.run
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        for page in self.run.pages() {
            // A device's write through a pin is not recorded as one.
            self.guest.table.set_pending(page, true);
            self.guest.table.unpin(page);
        }
    }
}
