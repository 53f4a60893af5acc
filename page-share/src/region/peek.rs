//! Reading a guest's pages wherever they are and leaving them there: what an oracle, a dump or a checksum needs.
//!
//! Nothing is brought back, filled, merged or counted. What is mapped is read in place, and only where the kernel says
//! that there is something, so that no read faults; what is kept elsewhere is copied out of there.

use crate::page::{Gfn, PAGE_SIZE, Page};
use crate::region::engine::lock;
use crate::region::merge::Merger;
use crate::region::mover::BATCH;
use crate::region::run::PageRun;
use crate::region::table::{Claim, Marks, State};
use crate::region::{PAUSE, Region};

/// One page as it was found.
struct Peeked {
    state: State,
    /// Its bytes could be read.
    readable: bool,
}

impl Region {
    /// Shows `visit` every page of `run` that is this guest's memory, in rising order: where it is, and its bytes.
    /// Changes nothing: no state, no counter, no fault, nothing is brought back. The bytes are `None` where there are
    /// none any more: a page that is lost, or one whose stored copy is damaged.
    ///
    /// Meant for while all vCPUs and devices are paused; pages that are written meanwhile are some mix of old and new
    /// bytes. Pages in the swap file are read from the disk, and pages that another thread is bringing back are waited
    /// for; neither keeps other calls from this region. `visit` is called without a lock held.
    pub fn peek(&self, run: PageRun, mut visit: impl FnMut(Gfn, State, Option<&Page>)) {
        let mut bytes = vec![[0; PAGE_SIZE]; BATCH as usize];
        for piece in self.parts(run).into_iter().flat_map(|part| part.pieces(BATCH)) {
            let found = self.peek_run(piece, &mut bytes);
            for ((page, found), bytes) in piece.pages().zip(found).zip(&mut bytes) {
                let found = found.unwrap_or_else(|| self.peek_waiting(page, bytes));
                visit(page, found.state, found.readable.then_some(bytes));
            }
        }
    }

    /// A page for which the disk or another thread is waited for, without the engine's lock.
    fn peek_waiting(&self, page: Gfn, bytes: &mut Page) -> Peeked {
        loop {
            if let Some(found) = self.peek_swapped(page, bytes) {
                return found;
            }
            let again = self.peek_run(PageRun::one(page), std::slice::from_mut(bytes));
            if let Some(found) = again.into_iter().flatten().next() {
                return found;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Copies the pages of `run`, which are inside one range, to the start of `bytes`; `None` for those that take longer
    /// than the engine's lock may be held.
    fn peek_run(&self, run: PageRun, bytes: &mut [Page]) -> Vec<Option<Peeked>> {
        let mut engine = lock(&self.engine);
        let merger = engine.merger();
        let populated = self.guest.pagemap().populated(self.guest.span(run));
        let pages = run.pages().zip(populated).zip(bytes);
        pages
            .map(|((page, populated), bytes)| self.peek_page(merger, page, populated, bytes))
            .collect()
    }

    fn peek_page(&self, merger: &Merger, page: Gfn, populated: bool, bytes: &mut Page) -> Option<Peeked> {
        let state = self.guest.table().state(page);
        let readable = match state {
            // The handler or the swap thread has it, until the disk answers; or it is read from the disk.
            State::InTransit | State::Swapped => return None,
            State::Hole | State::Lost => false,
            State::Empty | State::Ballooned => {
                bytes.fill(0);
                true
            }
            State::Private | State::Zero | State::Huge | State::Shared | State::Broken => {
                let span = self.guest.span(PageRun::one(page));
                // Asked once more, because the handler may have filled the page before its state was looked at.
                if populated || self.guest.pagemap().is_populated(span) {
                    span.copy_out(0, bytes);
                } else if state.is_pool() {
                    // Merged and not read since: the kernel has not mapped it yet. Only the engine, whose lock is held,
                    // could take it away.
                    let index = self.guest.table().last_location(page);
                    merger.pools().view(index).copy_out(0, bytes);
                } else {
                    // Nothing was ever written there.
                    bytes.fill(0);
                }
                true
            }
            State::Sampled | State::Compressed => {
                // Owned for the time of the copy: a fault would free what is being read.
                let claim = self.guest.table().claim(page, state)?;
                let readable = self.peek_kept(&claim, bytes);
                self.guest.settle(claim, state);
                readable
            }
        };
        Some(Peeked { state, readable })
    }

    /// A page that is in the swap file, read from there; `None` if it is not there.
    fn peek_swapped(&self, page: Gfn, bytes: &mut Page) -> Option<Peeked> {
        let state = State::Swapped;
        // Owned for the time of the read: a fault would free its slot.
        let claim = self.guest.table().claim(page, state)?;
        // The engine does not wait for it.
        self.guest.table().add_marks(page, Marks::READING);
        let read = self.cold.read(&claim, claim.run(), std::slice::from_mut(bytes));
        self.guest.settle(claim, state);
        let readable = read.is_ok();
        Some(Peeked { state, readable })
    }

    /// A claimed page that is kept in memory outside guest memory. Whether its bytes are what they were.
    fn peek_kept(&self, claim: &Claim, bytes: &mut Page) -> bool {
        if claim.from() == State::Sampled {
            self.area.copy_out(claim, bytes);
            return true;
        }
        self.cold.decompress(claim, claim.run().first, bytes).is_ok()
    }
}
