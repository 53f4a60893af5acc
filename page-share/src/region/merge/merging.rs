//! Merging: private pages become copy-on-write mappings of equal pool pages, or the kernel's zero page.

use rustix::io::Errno;

use crate::page::{Gfn, PAGE_SIZE};
use crate::region::engine::{BATCH, Engine};
use crate::region::kernel::userfault::{Look, Watch};
use crate::region::run::PageRun;
use crate::region::table::state::{Claim, State, mark};

/// What became of a run that was to be merged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Merged {
    /// Pages that are mapped from the pool now.
    pub(crate) merged: u32,
    /// The kernel refused a mapping: no more merging before the budget was counted anew.
    pub(crate) out_of_mappings: bool,
}

impl Engine {
    /// Maps what of `run` equals the pool pages at `places`, one for each page. References to places that are not used go
    /// to `returns`.
    pub(crate) fn merge(&mut self, run: PageRun, places: &[u32]) -> Merged {
        assert_eq!(
            run.count as usize,
            places.len(),
            "every page comes with its place"
        );
        let mut result = Merged::default();
        let mut left = places;
        for piece in self.pieces(run) {
            let (places, rest) = left.split_at(piece.count as usize);
            left = rest;
            if result.out_of_mappings {
                self.returns.extend_from_slice(places);
            } else {
                self.merge_batch(piece, places, &mut result);
            }
        }
        result
    }

    /// What of `run` is taken at a time: at most [`BATCH`] pages, in one range. Pages whose numbers follow each other need
    /// not be neighbours in this process.
    fn pieces(&self, run: PageRun) -> Vec<PageRun> {
        let parts = self.guest.layout.clip(run);
        parts.flat_map(|part| part.pieces(BATCH)).collect()
    }

    fn merge_batch(&mut self, run: PageRun, places: &[u32], result: &mut Merged) {
        let mut next = run.first.get();
        for claim in self.take(run) {
            let pages = claim.run();
            self.return_places(run, places, next..pages.first.get());
            next = pages.end();
            self.merge_taken(claim, run, places, result);
        }
        self.return_places(run, places, next..run.end());
    }

    /// References for pages of `run` that were not even taken: in use by a device, or disturbed. They are looked at
    /// again at the next pass.
    fn return_places(&mut self, run: PageRun, places: &[u32], pages: std::ops::Range<u32>) {
        for page in pages {
            self.returns.push(places[(page - run.first.get()) as usize]);
            if self.guest.table.state(page) == State::Private {
                self.guest.table.set_pending(page, true);
            }
        }
    }

    /// Splits one taken claim into stretches that equal the pool and stretches that differ.
    fn merge_taken(&mut self, claim: Claim, batch: PageRun, places: &[u32], result: &mut Merged) {
        let mut left = claim;
        while left.run().count > 0 {
            let run = left.run();
            let start = (run.first.get() - batch.first.get()) as usize;
            let places = &places[start..start + run.count as usize];
            let staged = self.staged(batch.first, run);
            let equal = |at: usize| {
                if let Some(&next) = places.get(at + 1) {
                    self.pools.view(next).prefetch(0);
                    staged.prefetch(at + 1);
                }
                staged.page_equals(at, self.pools.view(places[at]), 0)
            };
            let same = equal(0);
            let length = 1 + (1..places.len()).take_while(|&at| equal(at) == same).count();
            let (piece, rest) = left.split(length as u32);
            left = rest;
            if same && !result.out_of_mappings {
                self.map_pool(batch, piece, &places[..length], result);
            } else {
                if !same {
                    self.note_difference(piece.run());
                }
                self.returns.extend_from_slice(&places[..length]);
                self.give_back(batch.first, piece);
            }
        }
        drop(left);
    }

    fn note_difference(&self, run: PageRun) {
        let guest = &self.guest;
        guest.counters.pages_differed.add(u64::from(run.count));
        for page in run.numbers() {
            guest.table.add_marks(page, mark::DIFFERED);
        }
    }

    /// Maps pool pages over one taken stretch. What the kernel refuses gets anonymous memory and its bytes back: a failed
    /// mmap may have unmapped what was there.
    fn map_pool(&mut self, batch: PageRun, claim: Claim, places: &[u32], result: &mut Merged) {
        let (run, guest) = (claim.run(), self.guest.clone());
        let span = guest.span(run);
        let mut done = 0;
        for places in places.chunk_by(|before, after| before + 1 == *after) {
            if self.pools.map(span.sub(done, places.len()), places[0]).is_err() {
                result.out_of_mappings = true;
                break;
            }
            done += places.len();
        }
        let (mapped, refused) = claim.split(done as u32);
        result.merged += mapped.run().count;
        if mapped.run().count > 0 {
            self.settle_shared(mapped, &places[..done]);
        }
        if refused.run().count > 0 {
            guest.counters.mapping_failures.add(1);
            self.returns.extend_from_slice(&places[done..]);
            self.rescue(batch, refused);
        }
    }

    /// Registers and flags a stretch of new pool mappings, all in one go, and lets its waiters see it.
    fn settle_shared(&mut self, claim: Claim, places: &[u32]) {
        let (run, guest) = (claim.run(), self.guest.clone());
        let span = guest.span(run);
        // The guest may have read and written the mapping by now, so there is no way back. A page that is not watched
        // breaks without asking the gate; the next call that protects it tries again.
        let watched = guest.pool_watch.register(span, Watch::Writes);
        if let Err(error) = watched.and_then(|()| span.flag_pool()) {
            guest.counters.mapping_failures.add(1);
            log::warn!("{run:?} is merged, but cannot be watched or flagged: {error}");
        }
        let gated = guest.gate.is_closed();
        if gated && let Err(error) = guest.pool_watch.protect(span) {
            log_gate_failure(run, error);
        }
        for (page, &place) in run.numbers().zip(places) {
            guest.table.set_detail(page, place);
            guest.table.clear_marks(page, mark::REPORTED | mark::DIFFERED);
            guest.table.set_pending(page, false);
        }
        guest.counters.pages_merged.add(u64::from(run.count));
        guest.settle(claim, State::Shared);
        guest.add_mappings(self.edges(run, Backing::Pool) - self.edges(run, Backing::Own));
    }

    /// Gives a taken stretch back after its mapping failed: into the old mapping where it is still there, else into
    /// fresh memory.
    fn rescue(&mut self, batch: PageRun, claim: Claim) {
        let (run, from) = (claim.run(), claim.from());
        self.guest.give_back_or_map(run, self.staged(batch.first, run));
        self.guest.settle(claim, from);
    }

    /// Replaces what of `run` is all zeros by the kernel's zero page. Costs no mapping. [`Engine::clear_staging`]
    /// afterwards, once for many runs: what was replaced waits there.
    pub(crate) fn merge_zeros(&mut self, run: PageRun) {
        for batch in run.pieces(BATCH) {
            let taken = self.take(batch);
            let staged = self.staged(batch.first, batch);
            let is_zero = |page: u32| staged.page_is_zero((page - batch.first.get()) as usize);
            for (piece, zero) in taken.into_iter().flat_map(|claim| claim.split_by(is_zero)) {
                if zero {
                    self.settle_zero(piece);
                } else {
                    self.give_back(batch.first, piece);
                }
            }
        }
    }

    /// Drops what of `run` is the kernel's zero page, whatever it was last seen as; it reads zero all the same. What was
    /// written since is kept. A thread that fills pages just now is waited for; what is read from the swap file gets
    /// memory of its own.
    pub(crate) fn drop_zeros(&mut self, run: PageRun) -> Result<(), Errno> {
        for page in run.numbers() {
            while self.guest.table.is_held_for_a_moment(page) {
                std::thread::yield_now();
            }
        }
        let mut found = Vec::new();
        self.pagemap
            .scan(self.guest.span(run), Look::Populated, &mut found)?;
        for zeros in found.iter().filter(|found| found.zero) {
            let page = |address| self.guest.layout.page_at(address);
            let first = page(zeros.start).expect("found where it was looked for");
            let count = ((zeros.end - zeros.start) / PAGE_SIZE) as u32;
            self.merge_zeros(PageRun::new(Gfn::new(first), count));
        }
        self.clear_staging();
        Ok(())
    }

    pub(crate) fn settle_zero(&mut self, claim: Claim) {
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

/// A pool run that could not be protected can break ungated; the gate covers it at its next closing.
fn log_gate_failure(run: PageRun, error: Errno) {
    log::warn!("{run:?} was merged while growth is gated, but cannot be protected: {error}");
}

impl Engine {
    /// Mappings that merging `run` with `places`, one for each page, would add.
    pub(crate) fn merge_cost(&self, run: PageRun, places: &[u32]) -> i64 {
        let table = &self.guest.table;
        let joins = |page: u32, place: Option<u32>| {
            page < table.pages()
                && matches!(table.state(page), State::Shared | State::Broken)
                && Some(table.detail(page)) == place
        };
        let is_pool =
            |page: u32| page < table.pages() && matches!(table.state(page), State::Shared | State::Broken);
        let (first, last) = (places[0], places[places.len() - 1]);
        let before = run.first.get().checked_sub(1);
        let left_pool = before.is_some_and(is_pool);
        let left_joins = before.is_some_and(|page| joins(page, first.checked_sub(1)));
        let (right_pool, right_joins) = (is_pool(run.end()), joins(run.end(), last.checked_add(1)));
        let side = |pool: bool, joins: bool| match (pool, joins) {
            (true, true) => -1,
            (true, false) => 0,
            (false, _) => 1,
        };
        let seams = places.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count() as i64;
        side(left_pool, left_joins) + side(right_pool, right_joins) + seams
    }
}
