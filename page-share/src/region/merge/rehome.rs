//! Re-homing: pages that are mapped from a pool come back to memory of their own, while their guest runs.

use rustix::io::Errno;

use super::Merger;
use crate::region::mover::BATCH;
use crate::region::run::PageRun;
use crate::region::table::{Claim, Pinned, State};

/// How often a protection is tried again when the kernel says that it was disturbed.
const TRIES: u32 = 1000;

impl Merger {
    /// Brings back whatever of `run` is mapped from a pool, broken or not. Pages with I/O in flight stay. Returns the
    /// number of pages brought back.
    pub(crate) fn rehome(&mut self, run: PageRun) -> u32 {
        let mut count = 0;
        for piece in run.pieces(BATCH) {
            let mut at = piece.first;
            while at < piece.end() {
                let state = self.guest.table().state(at);
                let claim = match state.is_pool() {
                    true => self.guest.claim_run(piece.rest(at), state, Pinned::Leave),
                    false => None,
                };
                at = claim.as_ref().map_or(at.plus(1), |claim| claim.run().end());
                count += claim.map_or(0, |claim| self.rehome_claim(claim));
            }
        }
        count
    }

    /// Write-protects, copies aside, moves virgin pages over, fills them, wakes. In between readers see the old page
    /// or wait; writers wait.
    fn rehome_claim(&mut self, claim: Claim) -> u32 {
        let guest = self.guest.clone();
        let run = claim.run();
        let span = guest.span(run);
        if self.protect(run).is_err() {
            guest.unclaim(claim);
            return 0;
        }
        self.mover.copy_aside(run);
        let virgin = self.arena.next(span.pages(), &guest);
        let moved = virgin.and_then(|virgin| guest.move_mapping(virgin, span));
        if let Err(error) = moved {
            guest.counters().mapping_failures.add(1);
            if span.is_mapped() {
                // The kernel refused before it unmapped anything: nothing has happened.
                self.let_writes_through(run);
                guest.unclaim(claim);
                return 0;
            }
            // What was there is unmapped, but its bytes are safe.
            guest.map_anew(span, error);
        }
        guest.copy_all(run, self.mover.aside(run.count));
        self.left_pool(&claim);
        for page in run.pages() {
            self.candidates.remove(page);
            guest.table().set_pending(page, false);
        }
        guest.counters().pages_rehomed.add(u64::from(run.count));
        guest.settle(claim, State::Private);
        run.count
    }

    fn protect(&self, run: PageRun) -> Result<(), Errno> {
        let mut tries = 0;
        loop {
            match self.guest.protect_pool(run) {
                Err(Errno::AGAIN) if tries < TRIES => tries += 1,
                // The kernel refused to watch it when it was merged.
                Err(Errno::NOENT) if tries < TRIES => {
                    tries = TRIES;
                    self.guest.watch_pool(run)?;
                }
                other => return other,
            }
            std::thread::yield_now();
        }
    }
}
