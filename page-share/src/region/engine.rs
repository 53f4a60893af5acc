//! The engine: what one thread at a time does to a guest's pages, under the region's engine lock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::region::guest::Guest;
use crate::region::merge::Merger;
use crate::region::reclaim::{ColdStore, Reclaimer, Release, SampleArea, SwapOutError};
use crate::region::run::PageRun;

/// Everything that the thread holding the engine lock works with.
pub(crate) struct Engine {
    merger: Merger,
    reclaimer: Reclaimer,
}

impl Engine {
    /// An engine for pages of `guest`, which go to `cold` and `area`.
    pub(crate) fn new(
        guest: Arc<Guest>,
        cold: Arc<ColdStore>,
        area: Arc<SampleArea>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            merger: Merger::new(guest.clone())?,
            reclaimer: Reclaimer::new(guest, cold, area),
        })
    }

    /// What merges pages and brings them back from pools.
    pub(crate) fn merger(&mut self) -> &mut Merger {
        &mut self.merger
    }

    /// What takes pages out of memory. What needs the merger for that is below.
    pub(crate) fn reclaimer(&mut self) -> &mut Reclaimer {
        &mut self.reclaimer
    }

    /// See [`Reclaimer::release`].
    pub(crate) fn release(&mut self, run: PageRun, why: Release) -> (u32, Option<PageRun>) {
        self.reclaimer.release(&mut self.merger, run, why)
    }

    /// See [`Reclaimer::compress`].
    pub(crate) fn compress(&mut self, run: PageRun) -> u32 {
        self.reclaimer.compress(&mut self.merger, run)
    }

    /// See [`Reclaimer::swap_out`].
    pub(crate) fn swap_out(&mut self, run: PageRun) -> Result<u32, SwapOutError> {
        self.reclaimer.swap_out(&mut self.merger, run)
    }

    /// See [`Reclaimer::bring_back`].
    pub(crate) fn bring_back(&mut self, run: PageRun) -> u32 {
        self.reclaimer.bring_back(&mut self.merger, run)
    }

    /// Brings everything of `run` back into memory of its own. Returns the number of pages.
    pub(crate) fn restore(&mut self, run: PageRun) -> u32 {
        self.merger.rehome(run) + self.bring_back(run)
    }
}

/// The engine, also after a thread that held it has died: the process aborts on panics where it matters.
pub(crate) fn lock(engine: &Mutex<Engine>) -> MutexGuard<'_, Engine> {
    engine.lock().unwrap_or_else(PoisonError::into_inner)
}
