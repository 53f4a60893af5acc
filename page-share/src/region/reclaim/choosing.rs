//! Which pages a caller should take out of memory.

use crate::page::Gfn;
use crate::region::reclaim::Reclaimer;
use crate::region::run::{PageRun, runs_of};
use crate::region::table::{Marks, State};

impl Reclaimer {
    /// Up to `n` private pages that were not written for at least one pass, from `from` on, in runs.
    pub(crate) fn cold_pages(&self, n: u32, from: Gfn) -> Vec<PageRun> {
        let cold = |page: &Gfn| !self.guest.table().is_pending(*page);
        self.in_runs(self.movable(from).filter(cold).take(n as usize))
    }

    /// The same, with as many others as are missing.
    pub(crate) fn victims(&self, n: u32, from: Gfn) -> Vec<PageRun> {
        let cold = |page: &Gfn| !self.guest.table().is_pending(*page);
        let first = self.movable(from).filter(cold);
        let others = self.movable(from).filter(|page| !cold(page));
        self.in_runs(first.chain(others).take(n as usize))
    }

    /// Private pages that may be taken, from `from` on.
    fn movable(&self, from: Gfn) -> impl Iterator<Item = Gfn> {
        let table = self.guest.table();
        let (from, all) = (from.get().min(table.pages()), table.pages());
        (from..all)
            .chain(0..from)
            .map(Gfn::new)
            .filter(move |&page| table.state(page) == State::Private)
            .filter(move |&page| !table.is_marked(page, Marks::EXCLUDED | Marks::STUCK))
    }

    fn in_runs(&self, pages: impl Iterator<Item = Gfn>) -> Vec<PageRun> {
        let mut pages: Vec<Gfn> = pages.collect();
        pages.sort_unstable();
        let clipped = |run| self.guest.layout().clip(run).collect::<Vec<_>>();
        runs_of(pages).into_iter().flat_map(clipped).collect()
    }
}
