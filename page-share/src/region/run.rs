//! Runs of pages: what is taken, merged and mapped in one go.

use crate::page::Gfn;

/// Consecutive pages of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRun {
    /// The first page.
    pub first: Gfn,
    /// How many.
    pub count: u32,
}

impl PageRun {
    /// `count` pages from `first`.
    pub const fn new(first: Gfn, count: u32) -> Self {
        Self { first, count }
    }

    /// `page` alone.
    pub(crate) const fn one(page: Gfn) -> Self {
        Self::new(page, 1)
    }

    /// The pages from `start` on, before `end`.
    pub(crate) fn between(start: Gfn, end: Gfn) -> Self {
        Self::new(start, end.since(start))
    }

    /// The page after the last one.
    pub(crate) fn end(self) -> Gfn {
        self.first.plus(self.count)
    }

    /// The pages, in rising order.
    pub(crate) fn pages(self) -> impl DoubleEndedIterator<Item = Gfn> + Clone {
        (self.first.get()..self.end().get()).map(Gfn::new)
    }

    /// Whether `page` is one of them.
    pub(crate) fn contains(self, page: Gfn) -> bool {
        (self.first..self.end()).contains(&page)
    }

    /// What is left from `page` on, which is one of them or the one after the last.
    pub(crate) fn rest(self, page: Gfn) -> Self {
        Self::between(page, self.end())
    }

    /// At which place `page` is, counted from 0.
    pub(crate) fn index_of(self, page: Gfn) -> usize {
        page.since(self.first) as usize
    }

    /// Splits off pieces of at most `most` pages.
    pub(crate) fn pieces(self, most: u32) -> impl Iterator<Item = Self> {
        // By number: pages would be gone over one by one.
        let starts = (self.first.get()..self.end().get()).step_by(most as usize);
        starts
            .map(Gfn::new)
            .map(move |at| Self::between(at, self.end().min(at.plus(most))))
    }
}

/// Joins pages in rising order to runs.
pub(crate) fn runs_of(pages: impl IntoIterator<Item = Gfn>) -> Vec<PageRun> {
    let mut runs: Vec<PageRun> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(run) if run.end() == page => run.count += 1,
            _ => runs.push(PageRun::one(page)),
        }
    }
    runs
}
