//! What the kernel watches of a guest, and how the threads that wait are let go on.

use rustix::io::Errno;

use super::Guest;
use crate::region::kernel::{Found, Look, Progress, Span, Userfault, Watch};
use crate::region::run::PageRun;

impl Guest {
    /// The descriptors that report who waits: for missing pages, and for write-protected ones.
    pub(crate) fn event_sources(&self) -> [&Userfault; 2] {
        [&self.watch, &self.pool_watch]
    }

    /// Watches an area that pages are moved to or from.
    pub(crate) fn watch_area(&self, area: Span, watch: Watch) -> Result<(), Errno> {
        self.watch.register(area, watch)
    }

    /// Watches pages that were left to the kernel.
    pub(crate) fn watch(&self, run: PageRun) -> Result<(), Errno> {
        let span = self.span(run);
        span.flag_private()?;
        self.watch.register(span, Watch::MissingAndWrites)
    }

    /// Leaves pages to the kernel. Everything that was held of them was given back before.
    pub(crate) fn unwatch(&self, run: PageRun) -> Result<(), Errno> {
        self.watch.unregister(self.span(run))
    }

    /// Watches the writes to pages that were just mapped from a pool.
    pub(crate) fn watch_pool(&self, run: PageRun) -> Result<(), Errno> {
        self.pool_watch.register(self.span(run), Watch::Writes)
    }

    /// Makes writes to pool pages wait.
    pub(crate) fn protect_pool(&self, run: PageRun) -> Result<(), Errno> {
        self.pool_watch.protect(self.span(run))
    }

    /// Lets writes to pool pages through.
    pub(crate) fn unprotect_pool(&self, run: PageRun) -> Result<(), Errno> {
        self.pool_watch.unprotect(self.span(run))
    }

    /// Maps the zero page over claimed pages, once.
    pub(crate) fn try_zero(&self, run: PageRun) -> Progress {
        self.watch.zero(self.span(run))
    }

    /// Makes every access to claimed pages fail like one to broken memory, once.
    pub(crate) fn try_poison(&self, run: PageRun) -> Progress {
        self.watch.poison(self.span(run))
    }

    /// Lets every access to `run` try again, whatever it waits for.
    pub(crate) fn wake(&self, run: PageRun) {
        let span = self.span(run);
        self.event_sources().iter().for_each(|source| source.wake(span));
    }

    /// Appends to `found` what `look` finds in `run`, in address order.
    pub(crate) fn scan(&self, run: PageRun, look: Look, found: &mut Vec<Found>) -> Result<(), Errno> {
        self.pagemap.scan(self.span(run), look, found)
    }
}
