//! Where a guest's pages are in this process.

use std::any::Any;
use std::sync::Arc;

use crate::page::{Gfn, PAGE_SIZE};
use crate::region::kernel::{Arena, Span};
use crate::region::run::PageRun;

/// One range of guest memory: consecutive pages at consecutive addresses of this process.
///
/// Made by [`MemoryRange::adopt`](crate::MemoryRange::adopt), by
/// [`AnonymousMemory::range`](crate::AnonymousMemory::range), or from vm-memory's types.
#[derive(Debug)]
pub struct MemoryRange {
    pub(super) first: Gfn,
    pub(super) arena: Arena,
    /// Keeps the mapping alive for as long as a region uses it.
    pub(super) keep: Option<Keep>,
}

/// Whatever owns the mapping of a range.
pub(super) struct Keep(
    #[expect(dead_code, reason = "held for its drop")] pub(super) Arc<dyn Any + Send + Sync>,
);

impl std::fmt::Debug for Keep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keep")
    }
}

impl MemoryRange {
    /// The pages.
    pub fn run(&self) -> PageRun {
        PageRun::new(self.first, self.arena.span().pages() as u32)
    }

    /// The same, with `owner` of the mapping kept for as long as this range, or a region that has adopted it, exists.
    #[must_use]
    pub fn kept_by(mut self, owner: Arc<dyn Any + Send + Sync>) -> Self {
        self.keep = Some(Keep(owner));
        self
    }
}

/// All ranges of one guest, in rising page order.
#[derive(Debug)]
pub(crate) struct Layout {
    ranges: Vec<MemoryRange>,
}

impl Layout {
    /// Puts `ranges` in order; `None` when two overlap or there is none.
    pub(crate) fn new(mut ranges: Vec<MemoryRange>) -> Option<Self> {
        ranges.sort_by_key(|range| range.first);
        let apart = ranges.windows(2).all(|pair| pair[0].run().end() <= pair[1].first);
        (apart && !ranges.is_empty()).then_some(Self { ranges })
    }

    /// The ranges' runs.
    pub(crate) fn runs(&self) -> impl Iterator<Item = PageRun> {
        self.ranges.iter().map(MemoryRange::run)
    }

    /// One more than the last page number.
    pub(crate) fn limit(&self) -> Gfn {
        self.runs().map(PageRun::end).max().unwrap_or(Gfn::new(0))
    }

    /// The addresses of `run`.
    ///
    /// # Panics
    /// When it is not inside one range: callers clip with [`Layout::clip`] first.
    pub(crate) fn span(&self, run: PageRun) -> Span {
        let range = self
            .ranges
            .iter()
            .rfind(|range| range.first <= run.first)
            .expect("a page of the guest");
        range
            .arena
            .span()
            .sub(run.first.since(range.first) as usize, run.count as usize)
    }

    /// The page at `address`.
    pub(crate) fn page_at(&self, address: usize) -> Option<Gfn> {
        self.ranges.iter().find_map(|range| {
            let span = range.arena.span();
            let inside = (span.start()..span.end()).contains(&address);
            inside.then(|| range.first.plus(((address - span.start()) / PAGE_SIZE) as u32))
        })
    }

    /// The pages from address `start` to `end`, which are inside one range; `None` when they are not this guest's.
    pub(crate) fn run_at(&self, start: usize, end: usize) -> Option<PageRun> {
        let first = self.page_at(start)?;
        Some(PageRun::new(first, ((end - start) / PAGE_SIZE) as u32))
    }

    /// The parts of `run` that are memory, range by range.
    pub(crate) fn clip(&self, run: PageRun) -> impl Iterator<Item = PageRun> {
        self.runs().filter_map(move |range| {
            let (start, end) = (range.first.max(run.first), range.end().min(run.end()));
            (start < end).then(|| PageRun::between(start, end))
        })
    }
}
