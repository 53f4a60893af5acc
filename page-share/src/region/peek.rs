//! Reading a guest's pages wherever they are and leaving them there: what an oracle, a dump or a checksum needs.
//!
//! Nothing is brought back, filled, merged or counted. What is mapped is read in place, and only where the kernel says
//! that there is something, so that no read faults; what is kept elsewhere is copied out of there.

use crate::page::{Gfn, PAGE_SIZE, Page};
use crate::region::engine::{BATCH, Engine};
use crate::region::guest::shared::Guest;
use crate::region::reclaim::store::StoreHandle;
use crate::region::run::PageRun;
use crate::region::scan::scanner::lock;
use crate::region::table::state::{Claim, State};
use crate::region::{PAUSE, Region};

/// One page as it was found.
struct Found {
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
            let found = lock(&self.engine).peek(piece, &mut bytes);
            for ((page, found), bytes) in piece.numbers().zip(found).zip(&mut bytes) {
                let found = found.unwrap_or_else(|| self.peek_waiting(page, bytes));
                visit(Gfn::new(page), found.state, found.readable.then_some(bytes));
            }
        }
    }

    /// A page for which the disk or another thread is waited for, without the engine's lock.
    fn peek_waiting(&self, page: u32, bytes: &mut Page) -> Found {
        let one = PageRun::of(page..page + 1);
        loop {
            if let Some(found) = self.guest.peek_swapped(page, bytes) {
                return found;
            }
            let again = lock(&self.engine).peek(one, std::slice::from_mut(bytes));
            if let Some(found) = again.into_iter().flatten().next() {
                return found;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Engine {
    /// Copies the pages of `run`, which are inside one range, to the start of `bytes`; `None` for those that take longer
    /// than the engine's lock may be held.
    fn peek(&self, run: PageRun, bytes: &mut [Page]) -> Vec<Option<Found>> {
        let populated = self.guest.populated(self.guest.span(run));
        let pages = run.numbers().zip(populated).zip(bytes);
        pages
            .map(|((page, populated), bytes)| self.peek_page(page, populated, bytes))
            .collect()
    }

    fn peek_page(&self, page: u32, populated: bool, bytes: &mut Page) -> Option<Found> {
        let guest = &self.guest;
        let state = guest.table.state(page);
        let readable = match state {
            // The handler or the swap thread has it, until the disk answers; or it is read from the disk.
            State::InTransit | State::Swapped => return None,
            State::Hole | State::Lost => false,
            State::Empty | State::Ballooned => {
                bytes.fill(0);
                true
            }
            State::Private | State::Zero | State::Huge | State::Shared | State::Broken => {
                self.peek_mapped(page, state, populated, bytes);
                true
            }
            State::Sampled | State::Compressed => {
                // Owned for the time of the copy: a fault would free what is being read.
                let claim = guest.table.claim(page, state)?;
                let readable = guest.peek_kept(&claim, bytes);
                guest.settle(claim, state);
                readable
            }
        };
        Some(Found { state, readable })
    }

    /// A page that is mapped for its guest. Only the engine, whose lock is held, could take it away.
    fn peek_mapped(&self, page: u32, state: State, populated: bool, bytes: &mut Page) {
        let span = self.guest.span(PageRun::of(page..page + 1));
        match state {
            // Asked once more, because the handler may have filled the page before its state was looked at.
            _ if populated || self.guest.is_populated(span) => span.copy_out(0, bytes),
            // Merged and not read since: the kernel has not mapped it yet.
            State::Shared | State::Broken => {
                self.pools.view(self.guest.table.detail(page)).copy_out(0, bytes);
            }
            // Nothing was ever written there.
            _ => bytes.fill(0),
        }
    }
}

impl Guest {
    /// A page that is in the swap file, read from there; `None` if it is not there.
    fn peek_swapped(&self, page: u32, bytes: &mut Page) -> Option<Found> {
        let state = State::Swapped;
        // Owned for the time of the read: a fault would free its slot.
        let claim = self.table.claim(page, state)?;
        let readable = self
            .read_swapped(claim.run(), std::slice::from_mut(bytes))
            .is_ok();
        self.settle(claim, state);
        Some(Found { state, readable })
    }

    /// A claimed page that is kept in memory outside guest memory. Whether its bytes are what they were.
    fn peek_kept(&self, claim: &Claim, bytes: &mut Page) -> bool {
        let detail = self.table.detail(claim.run().first.get());
        if claim.from() == State::Sampled {
            self.sampling.span().copy_out(detail as usize, bytes);
            return true;
        }
        let handle = StoreHandle::from_bits(detail);
        self.keeping.store().load(handle, bytes).is_ok()
    }
}
