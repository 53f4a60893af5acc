//! The end of a region: everything comes back first, and what cannot is made safe where it is.

use std::time::Instant;

use crate::region::engine::lock;
use crate::region::kernel::Mappings;
use crate::region::mover::BATCH;
use crate::region::run::PageRun;
use crate::region::{PAUSE, Region, Stats};

impl Drop for Region {
    /// Closing the descriptors would show the guest zeros wherever something is held, so everything goes back first.
    fn drop(&mut self) {
        let safe = self.restore_all() || self.keep_in_place();
        self.scanner().leave(&self.engine);
        if !safe || !self.unwatch() {
            // Until its descriptor closes, only the handler fills missing pages, and only the swap thread those that it reads.
            self.handler.detach();
            self.swap_thread.detach();
        }
        self.handler.stop();
        self.swap_thread.stop();
        let mappings = Mappings::of_process();
        mappings.count_region(-1);
        mappings.recount();
    }
}

impl Region {
    /// Brings back all there is, waiting for what is in other hands just now. Whether everything is back.
    fn restore_all(&self) -> bool {
        self.guest.gate().set_closed(false);
        self.open_gate();
        lock(&self.engine).reclaimer().finish_sample();
        let start = Instant::now();
        loop {
            let runs: Vec<PageRun> = self.guest.layout().runs().collect();
            for run in runs {
                self.restore(run);
            }
            let stats = self.stats();
            if stats.shared + stats.broken + kept_elsewhere(&stats) == 0 {
                return true;
            }
            if start.elapsed() > self.patience {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// What could not be brought back is made safe where it is: pages of the pool become the guest's own copies in their
    /// mappings, and their references are kept; what cannot be read any more fails at every access. A page that is
    /// being read is the swap thread's, and its memory must stay watched until that thread has settled it. Whether no
    /// page needs the watch any more.
    fn keep_in_place(&self) -> bool {
        let stats = self.stats();
        log::error!(
            "a region is dropped while {} of its pages cannot leave the pool's mappings, for want of mappings or because of \
             I/O in flight, and {} cannot be read from the swap file",
            stats.shared + stats.broken,
            stats.swapped + stats.in_transit
        );
        self.guest.give_up();
        let start = Instant::now();
        loop {
            for run in self.guest.layout().runs().flat_map(|run| run.pieces(BATCH)) {
                let mut engine = lock(&self.engine);
                engine.merger().break_in_place(run);
                engine.reclaimer().give_up_stored(run);
            }
            let stats = self.stats();
            if stats.shared + kept_elsewhere(&stats) == 0 {
                return true;
            }
            if start.elapsed() > self.patience {
                log::error!(
                    "guest memory stays watched until the process ends: {} of its pages are still being read",
                    stats.in_transit
                );
                return false;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Leaves the guest's memory to the kernel. Whether it did.
    fn unwatch(&self) -> bool {
        let runs = self.guest.layout().runs();
        let refused = runs.filter_map(|run| self.guest.unwatch(run).err()).last();
        if let Some(error) = refused {
            log::warn!("guest memory stays watched until the process ends: {error}");
        }
        refused.is_none()
    }
}

/// Pages whose bytes are not in guest memory, or perhaps not. None of them becomes one of these again without the engine.
fn kept_elsewhere(stats: &Stats) -> u64 {
    stats.compressed + stats.swapped + stats.in_transit
}

#[cfg(test)]
mod tests;
