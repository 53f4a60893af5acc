//! Re-homing: pages that are mapped from a pool come back to memory of their own, while their guest runs.

use rustix::io::Errno;

use crate::region::engine::{BATCH, Engine};
use crate::region::kernel::userfault::Watch;
use crate::region::merge::merging::Backing;
use crate::region::run::PageRun;
use crate::region::table::state::{Claim, Pinned, State};

impl Engine {
    /// Brings back whatever of `run` is mapped from a pool, broken or not. Pages with I/O in flight stay. Returns the
    /// number of pages brought back.
    pub(crate) fn rehome(&mut self, run: PageRun) -> u32 {
        let mut count = 0;
        for piece in run.pieces(BATCH) {
            let mut at = piece.first.get();
            while at < piece.end() {
                let rest = PageRun::of(at..piece.end());
                let state = self.guest.table.state(at);
                let claim = match state {
                    State::Shared | State::Broken => self.guest.claim_run(rest, state, Pinned::Leave),
                    _ => None,
                };
                at = claim.as_ref().map_or(at + 1, |claim| claim.run().end());
                count += claim.map_or(0, |claim| self.rehome_claim(claim));
            }
        }
        count
    }

    /// Write-protects, copies aside, moves virgin pages over, fills them, wakes. In between readers see the old page
    /// or wait; writers wait.
    fn rehome_claim(&mut self, claim: Claim) -> u32 {
        let guest = self.guest.clone();
        let (run, from) = (claim.run(), claim.from());
        let span = guest.span(run);
        if self.protect(run).is_err() {
            guest.settle(claim, from);
            return 0;
        }
        self.copy_aside(run);
        let moved = match self.spare.next(span.pages(), &guest.watch) {
            Ok(spare) => guest.move_mapping(spare, span),
            Err(error) => Err(error),
        };
        if let Err(error) = moved {
            guest.counters.mapping_failures.add(1);
            if span.is_mapped() {
                // The kernel refused before it unmapped anything: nothing has happened.
                if let Err(error) = guest.pool_watch.unprotect(span) {
                    log::warn!("{span:?} cannot be unprotected at once: {error}; its faults will do it");
                }
                guest.settle(claim, from);
                return 0;
            }
            // What was there is unmapped, but its bytes are safe.
            guest.map_anew(span, error);
        }
        guest.copy_all(run, self.aside(run.count));
        for page in run.numbers() {
            self.returns.push(guest.table.detail(page));
            self.broken.remove(&page);
            guest.table.set_pending(page, false);
        }
        guest.counters.pages_rehomed.add(u64::from(run.count));
        guest.settle(claim, State::Private);
        guest.add_mappings(self.edges(run, Backing::Own) - self.edges(run, Backing::Pool));
        run.count
    }

    /// Where pages cannot come home: has the kernel copy those that are still the pool's.
    pub(crate) fn break_in_place(&mut self, run: PageRun) {
        let guest = &self.guest;
        for page in run.numbers().filter(|&page| guest.table.state(page).is_pool()) {
            guest.span(PageRun::of(page..page + 1)).break_copies();
            guest.table.relabel(page, State::Shared, State::Broken);
        }
    }

    fn protect(&self, run: PageRun) -> Result<(), Errno> {
        let span = self.guest.span(run);
        let mut tries = 0;
        loop {
            match self.guest.pool_watch.protect(span) {
                Err(Errno::AGAIN) if tries < 1000 => tries += 1,
                // The kernel refused to watch it when it was merged.
                Err(Errno::NOENT) if tries < 1000 => {
                    tries = 1000;
                    self.guest.pool_watch.register(span, Watch::Writes)?;
                }
                other => return other,
            }
            std::thread::yield_now();
        }
    }
}
