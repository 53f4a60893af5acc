//! Release: pages that their guest gives up. They read zero afterwards, wherever their content was.
//!
//! Never straight to madvise: dropping a page of a pool mapping would show the *pool's* bytes again, and dropping a
//! compressed page would leave its stored copy to come back.

use rustix::io::Errno;

use crate::page::PAGE_SIZE;
use crate::region::merge::Merger;
use crate::region::reclaim::Reclaimer;
use crate::region::run::PageRun;
use crate::region::table::{Claim, Pinned, State};

/// Why a guest gives pages up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Inflated into its balloon: the guest promises not to touch them.
    Balloon,
    /// Free page reporting, or any other "contents no longer needed": may be touched again at any time.
    Report,
}

impl Reclaimer {
    /// Gives `run` up, as far as the first page that the swap thread has: its disk is not waited for under the engine
    /// lock. Returns the number of pages that had content somewhere, and what is left.
    pub(crate) fn release(
        &mut self,
        merger: &mut Merger,
        run: PageRun,
        why: Release,
    ) -> (u32, Option<PageRun>) {
        let to = match why {
            Release::Balloon => State::Ballooned,
            Release::Report => State::Empty,
        };
        let guest = self.guest.clone();
        let mut count = 0;
        let mut at = run.first;
        while at < run.end() && !guest.table().is_being_read(at) {
            let state = guest.table().state(at);
            if state == State::InTransit {
                // The handler has it, for a moment, or leaves it to the swap thread.
                std::thread::yield_now();
                continue;
            }
            if state == State::Hole {
                at = at.plus(1);
                continue;
            }
            let Some(claim) = guest.claim_run(run.rest(at), state, Pinned::Ignore) else {
                continue;
            };
            at = claim.run().end();
            // What a huge block holds is not known.
            if !matches!(state, State::Empty | State::Ballooned | State::Huge) {
                count += claim.run().count;
            }
            self.drop_content(merger, claim, to);
        }
        guest.counters().pages_released.add(u64::from(count));
        let left = run.rest(at);
        (count, (left.count > 0).then_some(left))
    }

    /// Makes the pages of `claim` empty and settles them as `to`.
    fn drop_content(&mut self, merger: &mut Merger, claim: Claim, to: State) {
        let (run, from) = (claim.run(), claim.from());
        match from {
            State::Private | State::Zero | State::Lost => {
                if let Err(error) = self.guest.span(run).discard() {
                    return self.keep_zeros(claim, error);
                }
            }
            State::Huge => return self.drop_unwatched(claim),
            State::Shared | State::Broken => {
                if !merger.unmap(&claim) {
                    return merger.zero_in_place(claim);
                }
            }
            State::Sampled => self.drop_sampled(&claim),
            State::Compressed | State::Swapped => self.cold.forget(&claim),
            State::Empty | State::Ballooned | State::InTransit | State::Hole => {}
        }
        for page in run.pages() {
            merger.forget_content(page);
        }
        self.guest.settle(claim, to);
    }

    /// Memory that the kernel will not drop reads zero, as it must, and stays.
    fn keep_zeros(&self, claim: Claim, error: Errno) {
        let (run, from, guest) = (claim.run(), claim.from(), &self.guest);
        log::warn!("{run:?} cannot be dropped: {error}");
        guest.counters().pages_stuck.add(u64::from(run.count));
        run.pages().for_each(|page| guest.table().set_pending(page, true));
        guest.settle(claim, from);
        if from != State::Lost {
            // Not while it is claimed: a page that is missing would wait for this thread.
            let span = guest.span(run);
            (0..span.pages()).for_each(|index| span.copy_in(index, &[0; PAGE_SIZE]));
        }
    }

    /// Pages of huge blocks go back to the kernel and stay unwatched. While they are claimed their block can be neither
    /// split nor rebuilt, so that no page is dropped that another thread has begun to watch, and none is called private
    /// that is being dropped.
    fn drop_unwatched(&self, claim: Claim) {
        let run = claim.run();
        if let Err(error) = self.guest.span(run).discard() {
            log::warn!("{run:?} of huge blocks cannot be dropped: {error}");
        }
        self.guest.unclaim(claim);
    }

    /// The guest has taken ballooned pages back: they are plainly empty from now on.
    pub(crate) fn deflate(&mut self, run: PageRun) {
        let mut at = run.first;
        while at < run.end() {
            let claim = self
                .guest
                .claim_run(run.rest(at), State::Ballooned, Pinned::Ignore);
            at = claim.as_ref().map_or(at.plus(1), |claim| claim.run().end());
            if let Some(claim) = claim {
                self.guest.settle(claim, State::Empty);
            }
        }
    }
}
