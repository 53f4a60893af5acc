//! Pool pages while growth is gated: writes to them wait for credit.

use super::Merger;
use crate::region::run::PageRun;
use crate::region::table::{Claim, Pinned, State};

impl Merger {
    /// Makes writes to what of `run` is mapped from a pool wait for credit.
    pub(crate) fn gate(&self, run: PageRun) {
        for claim in self.claim_pool(run) {
            // Broken pages are memory of their own already.
            if claim.from() == State::Shared
                && let Err(error) = self.guest.protect_pool(claim.run())
            {
                let run = claim.run();
                log::warn!("{run:?} cannot be protected and may grow ungated: {error}");
            }
            self.guest.unclaim(claim);
        }
    }

    /// Lets them through again.
    pub(crate) fn ungate(&self, run: PageRun) {
        for claim in self.claim_pool(run) {
            self.let_writes_through(claim.run());
            self.guest.unclaim(claim);
        }
    }

    /// Ends the write protection of pool pages, as far as the kernel does it at once.
    pub(super) fn let_writes_through(&self, run: PageRun) {
        if let Err(error) = self.guest.unprotect_pool(run) {
            log::warn!("{run:?} cannot be unprotected at once: {error}; its faults will do it");
        }
    }

    /// Claims what of `run` is mapped from a pool.
    fn claim_pool(&self, run: PageRun) -> Vec<Claim> {
        let mut claims = Vec::new();
        let mut at = run.first;
        while at < run.end() {
            let state = self.guest.settled_state(at);
            let claim = match state.is_pool() {
                true => self.guest.claim_run(run.rest(at), state, Pinned::Ignore),
                false => None,
            };
            at = claim.as_ref().map_or(at.plus(1), |claim| claim.run().end());
            claims.extend(claim);
        }
        claims
    }
}
