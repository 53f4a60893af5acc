//! Takes pages away from a guest on the manager's order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use page_share::{Gfn, PageRun, Region, State};

use super::allowance::Allowance;
use super::swapper::Swapper;

/// How long pages are compressed, and then swapped, on one order.
const SQUEEZE: Duration = Duration::from_millis(500);

/// Pages taken between two looks at the clock and at what is to spare.
const PART: u32 = 64;

/// What one guest's pages are compressed and swapped by.
pub(super) struct Squeezer {
    allowance: Allowance,
    swapper: Arc<Swapper>,
}

impl Squeezer {
    pub(super) fn new(allowance: Allowance, swapper: Arc<Swapper>) -> Self {
        Self { allowance, swapper }
    }

    /// Compresses, then swaps, pages on which sharing found nothing, for as long as a report can wait. What is left to
    /// do then is the next order's: a manager that hears nothing plans with old figures, and in the end hangs up. A guest's
    /// minimum stays: what was ordered a moment ago may be gone by other ways.
    pub(super) fn squeeze(&self, compress: u64, swap: u64) {
        if compress == 0 && swap == 0 {
            return;
        }
        let (region, until) = (self.swapper.region(), Instant::now() + SQUEEZE);
        let mut incompressible = 0;
        for part in parts(region.cold_pages(self.at_most(compress))) {
            let compressed = self.allowance.part_with(part, |part| {
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
        let until = Instant::now() + SQUEEZE;
        for part in parts(region.cold_pages(self.at_most(swap.saturating_add(incompressible)))) {
            let swapped = self.allowance.part_with(part, |part| self.swapper.swap_out(part));
            if swapped.flatten().is_none() || Instant::now() >= until {
                return;
            }
        }
    }

    /// `pages`, or as many as are to spare.
    fn at_most(&self, pages: u64) -> u32 {
        u32::try_from(pages.min(self.allowance.spare())).unwrap_or(u32::MAX)
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
pub(super) fn parts(runs: Vec<PageRun>) -> impl Iterator<Item = PageRun> {
    runs.into_iter().flat_map(|run| {
        (0..run.count).step_by(PART as usize).map(move |at| PageRun {
            first: Gfn::new(run.first.get() + at),
            count: PART.min(run.count - at),
        })
    })
}
