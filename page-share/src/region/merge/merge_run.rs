//! Consecutive pages that are to be merged, each with the pool page that it probably equals.

use super::{Merger, PoolIndex};
use crate::page::Gfn;
use crate::region::guest::Guest;
use crate::region::mover::BATCH;
use crate::region::run::PageRun;
use crate::region::table::Marks;

/// Most runs that are merged in one go: each costs a mapping, and a thread that touches a page of the last waits for
/// them all.
const MOST_MAPPINGS: u32 = 16;

/// Consecutive pages and the pool pages for them, which are consecutive too, one mapping, until runs are joined.
///
/// Each pool page comes with a reference.
#[derive(Debug)]
pub(crate) struct MergeRun {
    first: Gfn,
    /// One for each page, at least one.
    indices: Vec<PoolIndex>,
}

impl MergeRun {
    /// One page.
    pub(crate) fn new(page: Gfn, index: PoolIndex) -> Self {
        Self {
            first: page,
            indices: vec![index],
        }
    }

    /// Pages.
    pub(crate) fn count(&self) -> u32 {
        self.indices.len() as u32
    }

    fn run(&self) -> PageRun {
        PageRun::new(self.first, self.count())
    }

    fn end(&self) -> Gfn {
        self.first.plus(self.count())
    }

    /// Whether the run goes on with `page` and `index`.
    pub(crate) fn continues(&self, page: Gfn, index: PoolIndex) -> bool {
        self.end() == page && self.indices.last().is_some_and(|last| last.precedes(index))
    }

    /// Adds the next page, which has `index`.
    pub(crate) fn push(&mut self, index: PoolIndex) {
        self.indices.push(index);
    }

    /// Every page and its pool page.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (Gfn, PoolIndex)> + '_ {
        self.run().pages().zip(self.indices.iter().copied())
    }

    /// The pool pages.
    pub(crate) fn into_indices(self) -> Vec<PoolIndex> {
        self.indices
    }

    /// Joins runs, in page order, that lie side by side: they are taken in one go, which costs as much as taking one page.
    /// The first comes last.
    pub(crate) fn join(runs: Vec<Self>) -> Vec<Self> {
        let mut joined_runs: Vec<Self> = Vec::with_capacity(runs.len());
        let mut joined = 0;
        for run in runs {
            joined += 1;
            match joined_runs.last_mut() {
                Some(last)
                    if last.end() == run.first
                        && joined <= MOST_MAPPINGS
                        && last.count() + run.count() <= BATCH =>
                {
                    last.indices.extend_from_slice(&run.indices);
                }
                _ => {
                    joined_runs.push(run);
                    joined = 1;
                }
            }
        }
        joined_runs.reverse();
        joined_runs
    }

    /// Mappings that merging would add.
    pub(crate) fn cost(&self, merger: &Merger) -> i64 {
        merger.mapping_change(self.run(), &self.indices)
    }

    /// Pages won for each two mappings that a run costs: its length where it lies between private pages. A run that
    /// joins a neighbour costs less, one that fills a gap costs nothing.
    pub(crate) fn worth(&self, merger: &Merger) -> u32 {
        match u32::try_from(self.cost(merger)) {
            Ok(cost) if cost > 0 => self.count() * 2 / cost,
            _ => u32::MAX,
        }
    }

    /// Asks for the beginnings of its first page and of that page's pool page: both are compared soon.
    pub(crate) fn prefetch(&self, guest: &Guest, merger: &Merger) {
        merger.pools().view(self.indices[0]).prefetch(0);
        guest.span(PageRun::one(self.first)).prefetch(0);
    }

    /// Merges it. Whether the kernel refused a mapping.
    pub(crate) fn merge(self, merger: &mut Merger) -> bool {
        merger.merge(self.run(), &self.indices)
    }

    /// Gives it up for lack of mappings: the references go back, the pages are marked.
    pub(crate) fn leave_out(self, guest: &Guest, merger: &mut Merger) {
        let left_out = &guest.counters().merges_without_mapping;
        left_out.add(u64::from(self.count()));
        for page in self.run().pages() {
            guest.table().add_marks(page, Marks::LEFT_OUT);
        }
        merger.return_references(self.indices);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::table::Location;

    #[test]
    fn runs_side_by_side_are_joined_up_to_the_limits() {
        let index = PoolIndex::from_bits;
        let run = |first: u32, count: u32| MergeRun {
            first: Gfn::new(first),
            indices: (1000 - first * 2..).take(count as usize).map(index).collect(),
        };
        let joined = MergeRun::join(vec![run(0, 2), run(2, 1), run(4, 127), run(131, 1), run(132, 1)]);
        let spans: Vec<(u32, u32)> = joined.iter().map(|run| (run.first.get(), run.count())).collect();
        assert_eq!(spans, [(132, 1), (4, 128), (0, 3)]);
        assert_eq!(joined[2].indices, [1000, 1001, 996].map(index));
        let singles = MergeRun::join((0..40).map(|page| run(page, 1)).collect());
        let counts: Vec<u32> = singles.iter().map(MergeRun::count).collect();
        assert_eq!(counts, [8, 16, 16]);
    }
}
