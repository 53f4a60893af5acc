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

    /// The page after the last one.
    pub(crate) fn end(self) -> u32 {
        self.first.get().saturating_add(self.count)
    }

    /// The pages, as numbers.
    pub(crate) fn numbers(self) -> std::ops::Range<u32> {
        self.first.get()..self.end()
    }

    /// The run of the numbers in `range`.
    pub(crate) fn of(range: std::ops::Range<u32>) -> Self {
        Self::new(Gfn::new(range.start), range.end - range.start)
    }

    /// Splits off pieces of at most `most` pages.
    pub(crate) fn pieces(self, most: u32) -> impl Iterator<Item = Self> {
        self.numbers()
            .step_by(most as usize)
            .map(move |at| Self::of(at..self.end().min(at + most)))
    }
}

/// Joins page numbers in rising order to runs.
pub(crate) fn runs_of(pages: impl IntoIterator<Item = u32>) -> Vec<PageRun> {
    let mut runs: Vec<PageRun> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(run) if run.end() == page => run.count += 1,
            _ => runs.push(PageRun::new(Gfn::new(page), 1)),
        }
    }
    runs
}
