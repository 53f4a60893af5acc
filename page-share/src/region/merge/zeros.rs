//! Pages of zeros: they need nothing but the kernel's zero page.

use rustix::io::Errno;

use super::Merger;
use crate::region::kernel::Look;
use crate::region::mover::BATCH;
use crate::region::run::PageRun;
use crate::region::table::{Claim, State};

impl Merger {
    /// Replaces what of `run` is all zeros by the kernel's zero page. Costs no mapping. Clear the mover afterwards, once
    /// for many runs: what was replaced waits there.
    pub(crate) fn merge_zeros(&mut self, run: PageRun) {
        for batch in run.pieces(BATCH) {
            let taken = self.mover.take(batch);
            for claim in taken {
                for (piece, zero) in claim.split_by(|page| self.mover.is_zero(page)) {
                    if zero {
                        self.settle_zero(piece);
                    } else {
                        self.mover.give_back(piece);
                    }
                }
            }
        }
    }

    /// Drops what of `run` is the kernel's zero page, whatever it was last seen as; it reads zero all the same. What was
    /// written since is kept. A thread that fills pages just now is waited for; what is read from the swap file gets
    /// memory of its own.
    pub(crate) fn drop_zeros(&mut self, run: PageRun) -> Result<(), Errno> {
        for page in run.pages() {
            self.guest.settled_state(page);
        }
        let mut found = Vec::new();
        self.guest.scan(run, Look::Populated, &mut found)?;
        for zeros in found.iter().filter(|found| found.zero) {
            let run = self.guest.layout().run_at(zeros.start, zeros.end);
            self.merge_zeros(run.expect("found where it was looked for"));
        }
        self.mover.clear();
        Ok(())
    }

    /// Settles taken pages that are all zeros without the memory that they had.
    pub(crate) fn settle_zero(&mut self, claim: Claim) {
        let run = claim.run();
        // Behind a closed gate zeros stay away: a mapped zero page grows without asking.
        let to = match self.guest.gate().is_closed() {
            true => State::Empty,
            false => State::Zero,
        };
        if to == State::Zero {
            self.guest.zero_all(run);
        }
        for page in run.pages() {
            self.withdraw(page);
        }
        self.guest.counters().pages_zeroed.add(u64::from(run.count));
        self.guest.settle(claim, to);
    }
}
