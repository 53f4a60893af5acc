//! Compresses and swaps a guest's pages: on the manager's order, and to make room within the limit. Both leave the
//! guest its minimum.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use page_share::{Gfn, PageRun, Region, State};

use super::limit_controller::{GuestPages, LimitController, PAGE};
use super::lock;

/// How long pages are compressed, and then swapped, on one order.
const ORDER_TIME: Duration = Duration::from_millis(500);

/// Pages taken between two looks at the clock and at what is to spare.
const PART: u32 = 64;

/// Shortest time between two warnings that swapping fails: a full disk sees hundreds of attempts a second.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Shortest time between two looks for pages whose sharing came apart: one goes through the guest's page tables.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What compresses and swaps one guest's pages.
#[derive(Debug)]
pub(super) struct Reclaimer {
    region: Arc<Region>,
    /// Knows what is to spare.
    limits: Arc<Mutex<LimitController>>,
    /// Held from asking what is to spare until that is taken: an order and the limit would take the same twice.
    taking: Mutex<()>,
    /// When a failure was warned of last.
    warned: Mutex<Option<Instant>>,
    /// When pages whose sharing came apart were looked for last.
    looked: Mutex<Option<Instant>>,
}

impl Reclaimer {
    pub(super) fn new(region: Arc<Region>, limits: Arc<Mutex<LimitController>>) -> Self {
        Self {
            region,
            limits,
            taking: Mutex::default(),
            warned: Mutex::default(),
            looked: Mutex::default(),
        }
    }

    /// Compresses, then swaps, pages on which sharing found nothing, for as long as a report can wait. What is left to
    /// do then is the next order's: a manager that hears nothing plans with old figures, and in the end hangs up.
    pub(super) fn obey(&self, compress: u64, swap: u64) {
        if compress == 0 && swap == 0 {
            return;
        }
        let (region, until) = (&self.region, Instant::now() + ORDER_TIME);
        let mut incompressible = 0;
        for part in parts(region.cold_pages(self.at_most(compress))) {
            let compressed = self.take_spare(part, |part| {
                region.compress(part);
                still_private(region, part)
            });
            let Some(left) = compressed else { return };
            incompressible += u64::from(left);
            if Instant::now() >= until {
                break;
            }
        }
        // The memory is wanted either way: what does not compress goes to the file.
        let until = Instant::now() + ORDER_TIME;
        for part in parts(region.cold_pages(self.at_most(swap.saturating_add(incompressible)))) {
            let swapped = self.take_spare(part, |part| self.swap_out(part));
            if swapped.flatten().is_none() || Instant::now() >= until {
                return;
            }
        }
    }

    /// Compresses up to `pages` pages, and swaps those out that do not compress or for which the store has no room. Says
    /// how many left memory. Where there are not as many, pages whose sharing came apart are brought home and taken too:
    /// the scan, which does that otherwise, may be waiting for a manager that stands still.
    pub(super) fn make_room(&self, pages: u32) -> u32 {
        let freed = self.take_victims(pages);
        if freed >= pages || !self.is_time_to_look() || self.region.rehome_broken(pages - freed) == 0 {
            return freed;
        }
        freed + self.take_victims(pages - freed)
    }

    fn is_time_to_look(&self) -> bool {
        let mut looked = lock(&self.looked);
        let is_time = looked.is_none_or(|when| when.elapsed() >= LOOK_INTERVAL);
        if is_time {
            *looked = Some(Instant::now());
        }
        is_time
    }

    fn take_victims(&self, pages: u32) -> u32 {
        let mut freed = 0;
        let pages = self.at_most(u64::from(pages));
        if pages == 0 {
            return 0;
        }
        for part in parts(self.region.victims(pages)) {
            match self.take_spare(part, |part| self.compress_or_swap(part)) {
                Some(taken) => freed += taken,
                None => break,
            }
        }
        freed
    }

    fn compress_or_swap(&self, part: PageRun) -> u32 {
        let compressed = self.region.compress(part).min(part.count);
        if compressed == part.count {
            return compressed;
        }
        let private = still_private(&self.region, part);
        // A full file takes some of them.
        let swapped = self
            .swap_out(part)
            .unwrap_or_else(|| private.saturating_sub(still_private(&self.region, part)));
        compressed + swapped
    }

    /// Swaps out what is private of `run`: the number of pages that left memory; `None` where it failed.
    fn swap_out(&self, run: PageRun) -> Option<u32> {
        self.region
            .swap_out(run)
            .inspect_err(|error| {
                let mut warned = lock(&self.warned);
                if warned.is_none_or(|when| when.elapsed() >= WARN_INTERVAL) {
                    *warned = Some(Instant::now());
                    log::warn!("pages stay in memory: {}", levy_protocol::error_chain(error));
                }
            })
            .ok()
    }

    /// Pages that may be taken: what the guest has above its minimum.
    pub(super) fn spare(&self) -> u64 {
        let pages = GuestPages::of(&self.region.stats());
        lock(&self.limits).spare(pages) / PAGE
    }

    /// `pages`, or as many as are to spare.
    fn at_most(&self, pages: u64) -> u32 {
        u32::try_from(pages.min(self.spare())).unwrap_or(u32::MAX)
    }

    /// Takes `part` in `way`, or as much of it as is to spare; `None` where that is nothing.
    fn take_spare<T>(&self, part: PageRun, way: impl FnOnce(PageRun) -> T) -> Option<T> {
        let _taking = lock(&self.taking);
        let count = self.at_most(u64::from(part.count));
        (count > 0).then(|| way(PageRun::new(part.first, count)))
    }
}

/// Pages of `part` that did not compress: others may be gone because another thread was faster.
fn still_private(region: &Region, part: PageRun) -> u32 {
    let pages = part.first.get()..part.first.get().saturating_add(part.count);
    pages
        .filter(|&page| region.state(Gfn::new(page)) == State::Private)
        .count() as u32
}

/// Runs in parts after each of which there is time for a look at the clock and at what is to spare.
fn parts(runs: Vec<PageRun>) -> impl Iterator<Item = PageRun> {
    runs.into_iter().flat_map(|run| {
        (0..run.count).step_by(PART as usize).map(move |at| PageRun {
            first: Gfn::new(run.first.get() + at),
            count: PART.min(run.count - at),
        })
    })
}

#[cfg(test)]
mod tests;
