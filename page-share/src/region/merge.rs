//! Merging: private pages become copy-on-write mappings of equal pool pages, or the kernel's zero page.

use rustix::io::Errno;

use crate::region::engine::{BATCH, Engine};
use crate::region::error::fatal;
use crate::region::guest::Guest;
use crate::region::memory::map_anonymous;
use crate::region::run::PageRun;
use crate::region::state::{Claim, State};
use crate::region::userfault::Watch;

/// What became of a run that was to be merged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Merged {
    /// Pages that are mapped from the pool now.
    pub(crate) merged: u32,
    /// The kernel refused a mapping: no more merging before the budget was counted anew.
    pub(crate) out_of_mappings: bool,
}

impl Engine {
    /// Maps what of `run` equals the pool pages from `place` on. References to places that are not used go to
    /// `returns`, one for each page.
    pub(crate) fn merge(&mut self, run: PageRun, place: u32) -> Merged {
        let mut total = Merged::default();
        for piece in run.pieces(BATCH) {
            let place = place + (piece.first.get() - run.first.get());
            if total.out_of_mappings {
                self.returns.extend(place..place + piece.count);
                continue;
            }
            let done = self.merge_batch(piece, place);
            total.merged += done.merged;
            total.out_of_mappings = done.out_of_mappings;
        }
        total
    }

    fn merge_batch(&mut self, run: PageRun, place: u32) -> Merged {
        let mut result = Merged::default();
        let mut next = run.first.get();
        for claim in self.take(run) {
            let pages = claim.run();
            self.return_places(place, run, next..pages.first.get());
            next = pages.end();
            self.merge_taken(claim, run, place, &mut result);
        }
        self.return_places(place, run, next..run.end());
        result
    }

    /// References for pages of `run` that were not even taken: in use by a device, or disturbed. They are looked at
    /// again at the next pass.
    fn return_places(&mut self, place: u32, run: PageRun, pages: std::ops::Range<u32>) {
        for page in pages {
            self.returns.push(place + (page - run.first.get()));
            if self.guest.table.state(page) == State::Private {
                self.guest.table.set_pending(page, true);
            }
        }
    }

    /// Splits one taken claim into stretches that equal the pool and stretches that differ.
    fn merge_taken(&mut self, claim: Claim, batch: PageRun, place: u32, result: &mut Merged) {
        let view = self.pools.view(place).sub(0, batch.count as usize);
        let staged = self.staged(batch.first, batch);
        let equal = |page: u32| {
            let index = (page - batch.first.get()) as usize;
            staged.page_equals(index, view, index)
        };
        let mut left = claim;
        while left.run().count > 0 {
            let run = left.run();
            let same = equal(run.first.get());
            let alike = run.numbers().skip(1).take_while(|&page| equal(page) == same);
            let length = 1 + alike.count() as u32;
            let (piece, rest) = left.split(length);
            left = rest;
            let at = place + (run.first.get() - batch.first.get());
            if !same || result.out_of_mappings {
                self.guest.counters.pages_differed.add(u64::from(length));
                self.returns.extend(at..at + length);
                self.give_back(batch.first, piece);
            } else {
                match self.map_pool(batch, piece, at) {
                    Ok(()) => result.merged += length,
                    Err(_) => result.out_of_mappings = true,
                }
            }
        }
        drop(left);
    }

    /// Maps pool pages over one taken stretch. When the kernel refuses, the stretch gets anonymous memory and its
    /// bytes back: a failed mmap may have unmapped what was there.
    fn map_pool(&mut self, batch: PageRun, claim: Claim, place: u32) -> Result<(), Errno> {
        let (run, guest) = (claim.run(), self.guest.clone());
        let span = guest.span(run);
        let mapped = self
            .pools
            .map(span, place)
            .and_then(|()| guest.pool_watch.register(span, Watch::Writes));
        if let Err(error) = mapped {
            guest.counters.mapping_failures.add(1);
            self.returns.extend(place..place + run.count);
            self.rescue(batch, claim);
            return Err(error);
        }
        if guest.gate.is_closed()
            && let Err(error) = guest.pool_watch.protect(span)
        {
            log_gate_failure(run, error);
        }
        for (offset, page) in run.numbers().enumerate() {
            guest.table.set_detail(page, place + offset as u32);
            guest
                .table
                .clear_marks(page, crate::region::state::mark::REPORTED);
            guest.table.set_pending(page, false);
        }
        guest.counters.pages_merged.add(u64::from(run.count));
        guest.settle(claim, State::Shared);
        guest.add_mappings(self.edges(run, Backing::Pool) - self.edges(run, Backing::Own));
        Ok(())
    }

    /// Gives a taken stretch back after its mapping failed: into the old mapping where it is still there, else into
    /// fresh memory over whatever there is now.
    fn rescue(&mut self, batch: PageRun, claim: Claim) {
        let (guest, run, from) = (self.guest.clone(), claim.run(), claim.from());
        let (span, staged) = (guest.span(run), self.staged(batch.first, run));
        let progress = guest.move_from_us(staged, span);
        if progress.stopped.is_none() {
            guest.settle(claim, from);
            return;
        }
        if progress.pages == 0
            && let Err(error) =
                map_anonymous(span).and_then(|()| guest.watch.register(span, Watch::MissingAndWrites))
        {
            fatal(format_args!(
                "{run:?} lost its mapping and cannot get another: {error}"
            ));
        }
        let (done, rest) = claim.split(progress.pages as u32);
        drop_or_settle(&guest, done, from);
        self.give_back(batch.first, rest);
    }

    /// Replaces what of `run` is all zeros by the kernel's zero page. Costs no mapping.
    pub(crate) fn merge_zeros(&mut self, run: PageRun) {
        for batch in run.pieces(BATCH) {
            let taken = self.take(batch);
            let staged = self.staged(batch.first, batch);
            for claim in taken {
                let mut left = claim;
                while left.run().count > 0 {
                    let zero = |page: u32| staged.page_is_zero((page - batch.first.get()) as usize);
                    let run = left.run();
                    let is_zero = zero(run.first.get());
                    let alike = run.numbers().skip(1).take_while(|&page| zero(page) == is_zero);
                    let length = 1 + alike.count() as u32;
                    let (piece, rest) = left.split(length);
                    left = rest;
                    if is_zero {
                        self.settle_zero(piece);
                    } else {
                        self.give_back(batch.first, piece);
                    }
                }
                drop(left);
            }
        }
        self.clear_staging();
    }

    /// Drops what of `run` is the kernel's zero page; it reads zero all the same. What was written since is kept.
    pub(crate) fn drop_zeros(&mut self, run: PageRun) {
        let table = &self.guest.table;
        let zeros = run.numbers().filter(|&page| table.state(page) == State::Zero);
        for zeros in crate::region::run::runs_of(zeros.collect::<Vec<_>>()) {
            self.merge_zeros(zeros);
        }
    }

    fn settle_zero(&mut self, claim: Claim) {
        let run = claim.run();
        // Behind a closed gate zeros stay away: a mapped zero page grows without asking.
        let to = match self.guest.gate.is_closed() {
            true => State::Empty,
            false => State::Zero,
        };
        if to == State::Zero {
            self.guest.zero_all(run);
        }
        for page in run.numbers() {
            self.forget_hint(page);
        }
        self.guest.counters.pages_zeroed.add(u64::from(run.count));
        self.guest.settle(claim, to);
    }

    /// Places where one mapping ends and the next begins, from before `run` to after it, if `run` itself were backed
    /// as `backing` says.
    pub(crate) fn edges(&self, run: PageRun, backing: Backing) -> i64 {
        let table = &self.guest.table;
        let place_of = |page: u32| match (run.numbers().contains(&page), backing) {
            (true, Backing::Pool) => Some(table.detail(page)),
            (true, Backing::Own) => None,
            (false, _) => match table.state(page) {
                State::Shared | State::Broken => Some(table.detail(page)),
                _ => None,
            },
        };
        let start = run.first.get().saturating_sub(1);
        let end = (run.end() + 1).min(table.pages());
        let mut last = place_of(start);
        let mut edges = 0;
        for page in start + 1..end {
            let this = place_of(page);
            edges += i64::from(this != last.map(|place| place + 1));
            last = this;
        }
        edges
    }
}

/// What kind of mapping pages are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Private anonymous memory.
    Own,
    /// Pool pages, at the places in the details.
    Pool,
}

fn drop_or_settle(guest: &Guest, claim: Claim, to: State) {
    if claim.run().count > 0 {
        guest.settle(claim, to);
    }
}

/// A pool run that could not be protected can break ungated; the gate covers it at its next closing.
fn log_gate_failure(run: PageRun, error: Errno) {
    log::warn!("{run:?} was merged while growth is gated, but cannot be protected: {error}");
}

impl Engine {
    /// Mappings that merging `run` with the places from `place` on would add.
    pub(crate) fn merge_cost(&self, run: PageRun, place: u32) -> i64 {
        let table = &self.guest.table;
        let joins = |page: u32, place: Option<u32>| {
            page < table.pages()
                && matches!(table.state(page), State::Shared | State::Broken)
                && Some(table.detail(page)) == place
        };
        let is_pool =
            |page: u32| page < table.pages() && matches!(table.state(page), State::Shared | State::Broken);
        let before = run.first.get().checked_sub(1);
        let left_pool = before.is_some_and(is_pool);
        let left_joins = before.is_some_and(|page| joins(page, place.checked_sub(1)));
        let (right_pool, right_joins) = (is_pool(run.end()), joins(run.end(), Some(place + run.count)));
        let side = |pool: bool, joins: bool| match (pool, joins) {
            (true, true) => -1,
            (true, false) => 0,
            (false, _) => 1,
        };
        side(left_pool, left_joins) + side(right_pool, right_joins)
    }
}
