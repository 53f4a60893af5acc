//! Release: pages that their guest gives up. They read zero afterwards, wherever their content was.
//!
//! Never straight to madvise: dropping a page of a pool mapping would show the *pool's* bytes again, and dropping a
//! compressed page would leave its stored copy to come back.

use rustix::io::Errno;

use crate::region::engine::Engine;
use crate::region::kernel::memory::map_anonymous;
use crate::region::merge::merging::Backing;
use crate::region::run::PageRun;
use crate::region::table::state::{Claim, Pinned, State};

/// Why a guest gives pages up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Inflated into its balloon: the guest promises not to touch them.
    Balloon,
    /// Free page reporting, or any other "contents no longer needed": may be touched again at any time.
    Report,
}

impl Engine {
    /// Gives `run` up, as far as the first page that the swap thread has: its disk is not waited for under the engine
    /// lock. Returns the number of pages that had content somewhere, and what is left.
    pub(crate) fn release(&mut self, run: PageRun, why: Release) -> (u32, Option<PageRun>) {
        let to = match why {
            Release::Balloon => State::Ballooned,
            Release::Report => State::Empty,
        };
        let mut count = 0;
        let mut at = run.first.get();
        while at < run.end() && !self.guest.table.is_being_read(at) {
            let rest = PageRun::of(at..run.end());
            let state = self.guest.table.state(at);
            if state == State::InTransit {
                // The handler has it, for a moment, or leaves it to the swap thread.
                std::thread::yield_now();
                continue;
            }
            if state == State::Hole {
                at += 1;
                continue;
            }
            let Some(claim) = self.guest.claim_run(rest, state, Pinned::Ignore) else {
                continue;
            };
            at = claim.run().end();
            // What a huge block holds is not known.
            if !matches!(state, State::Empty | State::Ballooned | State::Huge) {
                count += claim.run().count;
            }
            self.drop_content(claim, to);
        }
        self.guest.counters.pages_released.add(u64::from(count));
        let left = PageRun::of(at..run.end());
        (count, (left.count > 0).then_some(left))
    }

    /// Makes the pages of `claim` empty and settles them as `to`.
    fn drop_content(&mut self, claim: Claim, to: State) {
        let (run, from) = (claim.run(), claim.from());
        let guest = self.guest.clone();
        let span = guest.span(run);
        match from {
            State::Private | State::Zero | State::Lost => {
                if let Err(error) = span.discard() {
                    return self.keep_zeros(claim, error);
                }
            }
            State::Huge => return self.drop_unwatched(claim),
            State::Shared | State::Broken => {
                if !self.unmap_pool(run) {
                    self.zero_in_place(claim);
                    return;
                }
            }
            State::Sampled => {
                for page in run.numbers() {
                    self.sample_drop(page);
                }
            }
            State::Compressed | State::Swapped => {
                for page in run.numbers() {
                    guest.forget_stored(guest.table.detail(page), from);
                }
            }
            State::Empty | State::Ballooned | State::InTransit | State::Hole => {}
        }
        for page in run.numbers() {
            self.forget_hint(page);
            self.broken.remove(&page);
        }
        guest.settle(claim, to);
    }

    /// Memory that the kernel will not drop reads zero, as it must, and stays.
    fn keep_zeros(&mut self, claim: Claim, error: Errno) {
        let guest = self.guest.clone();
        log::warn!("{:?} cannot be dropped: {error}", claim.run());
        guest.counters.pages_stuck.add(u64::from(claim.run().count));
        let (run, from) = (claim.run(), claim.from());
        run.numbers().for_each(|page| guest.table.set_pending(page, true));
        guest.settle(claim, from);
        if from != State::Lost {
            // Not while it is claimed: a page that is missing would wait for this thread.
            let span = guest.span(run);
            (0..span.pages()).for_each(|index| span.copy_in(index, &[0; crate::page::PAGE_SIZE]));
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
        self.guest.settle(claim, State::Huge);
    }

    /// Fresh anonymous memory over pool mappings. `false` when the kernel has no mapping left for it; nothing has
    /// happened then.
    fn unmap_pool(&mut self, run: PageRun) -> bool {
        let guest = self.guest.clone();
        let span = guest.span(run);
        if let Err(error) = map_anonymous(span) {
            guest.counters.mapping_failures.add(1);
            if span.is_mapped() {
                // Still a pool mapping: the kernel refused before it unmapped anything.
                return false;
            }
            guest.map_anew(span, error);
        } else {
            guest.insist("watch", span, || guest.watch_anew(span));
        }
        // What was written before it was watched, and where all new mappings are locked, zeros.
        let _ = span.discard();
        self.returns
            .extend(run.numbers().map(|page| guest.table.detail(page)));
        guest.add_mappings(self.edges(run, Backing::Own) - self.edges(run, Backing::Pool));
        true
    }

    /// The pages read zero, as they must, but stay in their pool mapping as broken pages: no memory is won.
    fn zero_in_place(&mut self, claim: Claim) {
        let guest = self.guest.clone();
        let span = guest.span(claim.run());
        if let Err(error) = guest.pool_watch.unprotect(span) {
            log::debug!("{span:?} cannot be unprotected: {error}");
        }
        // Settled first: should it be protected all the same, the handler lets the write through.
        guest.settle(claim, State::Broken);
        for index in 0..span.pages() {
            span.copy_in(index, &[0; crate::page::PAGE_SIZE]);
        }
    }

    /// The guest has taken ballooned pages back: they are plainly empty from now on.
    pub(crate) fn deflate(&mut self, run: PageRun) {
        let mut at = run.first.get();
        while at < run.end() {
            let rest = PageRun::of(at..run.end());
            match self.guest.claim_run(rest, State::Ballooned, Pinned::Ignore) {
                Some(claim) => {
                    at = claim.run().end();
                    self.guest.settle(claim, State::Empty);
                }
                None => at += 1,
            }
        }
    }
}
