//! Merging: private pages become copy-on-write mappings of equal pool pages.

use super::{Merger, PoolIndex};
use crate::region::mover::BATCH;
use crate::region::run::PageRun;
use crate::region::table::{Claim, Marks, State};

/// Pages and the pool pages that they are thought to equal, one for each.
#[derive(Clone, Copy)]
struct Granted<'a> {
    run: PageRun,
    indices: &'a [PoolIndex],
}

impl Granted<'_> {
    /// The pool pages for `part`.
    fn indices(&self, part: PageRun) -> &[PoolIndex] {
        let first = self.run.index_of(part.first);
        &self.indices[first..first + part.count as usize]
    }
}

impl Merger {
    /// Maps what of `run` equals the pool pages at `indices`, one for each page. References that are not used are owed to
    /// the manager. Whether the kernel refused a mapping: no more merging before the budget was counted anew.
    pub(crate) fn merge(&mut self, run: PageRun, indices: &[PoolIndex]) -> bool {
        assert_eq!(
            run.count as usize,
            indices.len(),
            "every page comes with its pool page"
        );
        let mut out_of_mappings = false;
        let mut left = indices;
        for run in self.pieces(run) {
            let (indices, rest) = left.split_at(run.count as usize);
            left = rest;
            if out_of_mappings {
                self.owed.add_references(indices.iter().copied());
            } else {
                self.merge_batch(Granted { run, indices }, &mut out_of_mappings);
            }
        }
        out_of_mappings
    }

    /// What of `run` is taken at a time: at most [`BATCH`] pages, in one range. Pages whose numbers follow each other need
    /// not be neighbours in this process.
    fn pieces(&self, run: PageRun) -> Vec<PageRun> {
        let parts = self.guest.layout().clip(run);
        parts.flat_map(|part| part.pieces(BATCH)).collect()
    }

    fn merge_batch(&mut self, granted: Granted<'_>, out_of_mappings: &mut bool) {
        let mut next = granted.run.first;
        for claim in self.mover.take(granted.run) {
            let pages = claim.run();
            self.return_untaken(granted, PageRun::between(next, pages.first));
            next = pages.end();
            self.merge_taken(claim, granted, out_of_mappings);
        }
        self.return_untaken(granted, granted.run.rest(next));
    }

    /// References for pages that were not even taken: in use by a device, or disturbed. They are looked at again at the
    /// next pass.
    fn return_untaken(&mut self, granted: Granted<'_>, run: PageRun) {
        self.owed.add_references(granted.indices(run).iter().copied());
        for page in run.pages() {
            if self.guest.table().state(page) == State::Private {
                self.guest.table().set_pending(page, true);
            }
        }
    }

    /// Splits one taken claim into pieces that equal the pool and pieces that differ.
    fn merge_taken(&mut self, claim: Claim, granted: Granted<'_>, out_of_mappings: &mut bool) {
        let mut left = claim;
        while left.run().count > 0 {
            let indices = granted.indices(left.run());
            let staged = self.mover.staged(left.run());
            let equal = |at: usize| {
                if let Some(&next) = indices.get(at + 1) {
                    self.pools.view(next).prefetch(0);
                    staged.prefetch(at + 1);
                }
                staged.page_equals(at, self.pools.view(indices[at]), 0)
            };
            let same = equal(0);
            let length = 1 + (1..indices.len()).take_while(|&at| equal(at) == same).count();
            let (piece, rest) = left.split(length as u32);
            left = rest;
            if same && !*out_of_mappings {
                *out_of_mappings = !self.map_pool(piece, &indices[..length]);
            } else {
                if !same {
                    self.note_difference(piece.run());
                }
                self.owed.add_references(indices[..length].iter().copied());
                self.mover.give_back(piece);
            }
        }
        drop(left);
    }

    fn note_difference(&self, run: PageRun) {
        let guest = &self.guest;
        guest.counters().pages_differed.add(u64::from(run.count));
        for page in run.pages() {
            guest.table().add_marks(page, Marks::DIFFERED);
        }
    }

    /// Maps pool pages over one taken piece; whether the kernel mapped all. What it refuses gets anonymous memory and its
    /// bytes back: a failed mmap may have unmapped what was there.
    fn map_pool(&mut self, claim: Claim, indices: &[PoolIndex]) -> bool {
        let span = self.guest.span(claim.run());
        let mut done = 0;
        for indices in indices.chunk_by(|before, after| before.precedes(*after)) {
            if self.pools.map(span.sub(done, indices.len()), indices[0]).is_err() {
                break;
            }
            done += indices.len();
        }
        let (mapped, refused) = claim.split(done as u32);
        if mapped.run().count > 0 {
            self.settle_shared(mapped, &indices[..done]);
        } else {
            drop(mapped);
        }
        if refused.run().count == 0 {
            drop(refused);
            return true;
        }
        self.guest.counters().mapping_failures.add(1);
        self.owed.add_references(indices[done..].iter().copied());
        // Into the old mapping where it is still there, else into fresh memory.
        let staged = self.mover.staged(refused.run());
        self.guest.give_back_or_map(refused.run(), staged);
        self.guest.unclaim(refused);
        false
    }

    /// Registers and flags new pool mappings, all in one go, and lets their waiters see them.
    fn settle_shared(&self, claim: Claim, indices: &[PoolIndex]) {
        let (run, guest) = (claim.run(), &self.guest);
        // The guest may have read and written the mapping by now, so there is no way back. A page that is not watched
        // breaks without asking the gate; the next call that protects it tries again.
        let watched = guest.watch_pool(run);
        if let Err(error) = watched.and_then(|()| guest.span(run).flag_pool()) {
            guest.counters().mapping_failures.add(1);
            log::warn!("{run:?} is merged, but cannot be watched or flagged: {error}");
        }
        if guest.gate().is_closed()
            && let Err(error) = guest.protect_pool(run)
        {
            // It can break ungated; the gate covers it at its next closing.
            log::warn!("{run:?} was merged while growth is gated, but cannot be protected: {error}");
        }
        for (page, &index) in run.pages().zip(indices) {
            guest.table().set_location(&claim, page, index);
            guest.table().clear_marks(page, Marks::REPORTED | Marks::DIFFERED);
            guest.table().set_pending(page, false);
        }
        guest.counters().pages_merged.add(u64::from(run.count));
        guest.settle(claim, State::Shared);
        guest.add_mappings(self.mapping_change(run, indices));
    }

    /// Mappings that there are more when `run` is mapped from the pool at `indices`, one for each page, than when it is
    /// memory of its own.
    pub(crate) fn mapping_change(&self, run: PageRun, indices: &[PoolIndex]) -> i64 {
        let table = self.guest.table();
        let (first, last) = (indices[0], indices[indices.len() - 1]);
        let before = run.first.previous();
        let before = before.map_or(0, |page| edge(table.located(page), |index| index.precedes(first)));
        let after = match run.end() {
            end if end.get() < table.pages() => edge(table.located(end), |index| last.precedes(index)),
            _ => 0,
        };
        let seams = indices
            .windows(2)
            .filter(|pair| !pair[0].precedes(pair[1]))
            .count();
        before + after + seams as i64
    }
}

/// What becomes of the edge of a mapping towards a neighbour that is in the pool at an index or not: there is one more,
/// or the one that is there already goes where the two become one mapping.
fn edge(neighbour: Option<PoolIndex>, joins: impl Fn(PoolIndex) -> bool) -> i64 {
    match neighbour {
        Some(index) if joins(index) => -1,
        Some(_) => 0,
        None => 1,
    }
}
