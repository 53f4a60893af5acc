//! The scan: which pages were written, which have gone quiet, which pool pages broke.
//!
//! In two steps, because arming drops KVM's mappings of everything it walks over: a plain look finds the written
//! runs, and only those are armed, or what lies closely between two of them; what the arming call returns is what counts.

use rustix::io::Errno;

use crate::hash::{PageHasher, Sketch};
use crate::page::{Gfn, PAGE_SIZE};
use crate::port::Report;
use crate::region::engine::{Engine, Quiet};
use crate::region::kernel::memory::{self, Span};
use crate::region::kernel::userfault::{Found, Look};
use crate::region::run::{PageRun, runs_of};
use crate::region::scan::backoff::Looked;
use crate::region::table::state::{State, mark};

/// Passes that a broken page must be quiet before it is re-homed.
const BROKEN_QUIET_PASSES: u8 = 2;

/// Pages looked at under one hold of the engine lock, 2 MiB: what was sketched is still in a core's cache when it is
/// published and compared.
pub(crate) const CHUNK: u32 = 512;

/// Pages sketched side by side.
const ABREAST: usize = 4;

/// Passes without a look for broken pages where the last one found none.
const CALM_PASSES: u8 = 3;

/// Clean pages between two written ones that are armed together.
const BRIDGED: usize = 4;

/// Passes after which pages that the kernel would not move are tried again.
const STUCK_PASSES: u64 = 16;

/// What one look at a run brought.
#[derive(Debug, Default)]
pub(crate) struct Scanned {
    /// How much of it had been written.
    pub(crate) looked: Looked,
    /// Quiet pages, in page order, not sketched yet.
    pub(crate) quiet: Vec<u32>,
    /// Quiet pages to report, in page order.
    pub(crate) reports: Vec<Report>,
    /// Quiet pages that look like zeros.
    pub(crate) zeros: Vec<u32>,
    /// Broken pages that have been quiet long enough to come home.
    pub(crate) homecomers: Vec<u32>,
}

impl Engine {
    /// Looks at `run`, which is inside one range and starts and ends at multiples of 64 pages or the range's ends.
    /// [`Engine::sketch`] what comes out as quiet.
    pub(crate) fn scan(&mut self, run: PageRun, hasher: &PageHasher, out: &mut Scanned) -> Result<(), Errno> {
        let span = self.guest.span(run);
        let before: Vec<u64> = words(run)
            .map(|word| self.guest.table.pending_word(word))
            .collect();
        self.find_written(span)?;
        out.looked = self.looked(run);
        out.quiet = self.quiet(run, &before);
        self.find_broken_unless_calm(run, hasher, out)?;
        self.guest.counters.pages_scanned.add(u64::from(run.count));
        Ok(())
    }

    /// What the look at `run` has just found.
    fn looked(&self, run: PageRun) -> Looked {
        let written: usize = self.found.iter().map(|found| found.end - found.start).sum();
        if written == 0 {
            return Looked::default();
        }
        let table = &self.guest.table;
        let own = |&page: &u32| table.state(page) == State::Private;
        Looked {
            own: run.numbers().filter(own).count() as u32,
            written: (written / PAGE_SIZE) as u32,
        }
    }

    /// Both steps: finds and arms what was written; it is pending afterwards and was not quiet.
    fn find_written(&mut self, span: Span) -> Result<(), Errno> {
        let mut written = std::mem::take(&mut self.found);
        written.clear();
        let looked = self.pagemap.scan(span, Look::Written, &mut written);
        let result = looked.and_then(|()| self.arm_all(&written));
        self.found = written;
        result
    }

    fn arm_all(&mut self, written: &[Found]) -> Result<(), Errno> {
        let mut armed = Vec::with_capacity(written.len());
        let mut at = 0;
        while at < written.len() {
            // The answers are split where zero pages begin; the call need not be. Nor where little lies between: one
            // more call makes every CPU flush its TLB, and costs more than KVM's faults on those few pages.
            let start = written[at].start;
            let mut end = written[at].end;
            while at + 1 < written.len() && written[at + 1].start - end <= BRIDGED * PAGE_SIZE {
                at += 1;
                end = written[at].end;
            }
            at += 1;
            for span in self.without_excluded(start, end) {
                self.pagemap.scan(span, Look::WrittenAndArm, &mut armed)?;
            }
        }
        for found in &armed {
            self.note_written(*found);
        }
        Ok(())
    }

    /// The stretches between `start` and `end` that may be armed.
    fn without_excluded(&self, start: usize, end: usize) -> Vec<Span> {
        let Some(first) = self.guest.layout.page_at(start) else {
            return Vec::new();
        };
        let run = PageRun::new(Gfn::new(first), ((end - start) / PAGE_SIZE) as u32);
        let table = &self.guest.table;
        if run.numbers().all(|page| !table.is_marked(page, mark::EXCLUDED)) {
            return vec![self.guest.span(run)];
        }
        let allowed = run
            .numbers()
            .filter(|&page| !table.is_marked(page, mark::EXCLUDED));
        runs_of(allowed)
            .into_iter()
            .map(|run| self.guest.span(run))
            .collect()
    }

    fn note_written(&mut self, found: Found) {
        let Some(first) = self.guest.layout.page_at(found.start) else {
            return;
        };
        let run = PageRun::new(Gfn::new(first), ((found.end - found.start) / PAGE_SIZE) as u32);
        let guest = self.guest.clone();
        guest.counters.pages_written.add(u64::from(run.count));
        for page in run.numbers() {
            if found.zero {
                // The kernel's zero page: nothing to merge, however it came there.
                guest.table.relabel(page, State::Private, State::Zero);
                guest.table.set_pending(page, false);
            } else {
                guest.table.relabel(page, State::Zero, State::Private);
                guest.table.clear_marks(page, mark::STUCK | mark::UNSHARABLE);
                guest.table.set_pending(page, true);
            }
        }
    }

    /// Sketches those of the quiet pages that are still private.
    pub(crate) fn sketch(&self, quiet: &[u32], hasher: &PageHasher, out: &mut Scanned) {
        let table = &self.guest.table;
        let quiet: Vec<u32> = quiet
            .iter()
            .copied()
            .filter(|&page| table.state(page) == State::Private)
            .collect();
        let spans: Vec<Span> = quiet
            .iter()
            .map(|&page| self.guest.span(PageRun::of(page..page + 1)))
            .collect();
        for &page in &quiet {
            self.guest.table.set_pending(page, false);
        }
        let (groups, rest) = spans.as_chunks::<ABREAST>();
        let mut sketches = Vec::with_capacity(spans.len());
        for (at, group) in groups.iter().enumerate() {
            let next = groups.get(at + 1).unwrap_or(group);
            sketches.extend(memory::sketches(*group, *next, hasher));
        }
        sketches.extend(rest.iter().map(|&span| sketch(span, hasher)));
        let zeros = out.zeros.len();
        for (&page, &sketch) in quiet.iter().zip(&sketches) {
            self.note_quiet(page, sketch, hasher, out);
        }
        let hashed = quiet.len() - (out.zeros.len() - zeros);
        self.guest.counters.pages_hashed.add(hashed as u64);
    }

    /// What is to be done with a page that has been quiet.
    fn note_quiet(&self, page: u32, sketch: Sketch, hasher: &PageHasher, out: &mut Scanned) {
        if sketch == hasher.of_zeros() {
            out.zeros.push(page);
            return;
        }
        if !self.guest.table.is_marked(page, mark::UNSHARABLE) {
            out.reports.push(Report {
                gfn: Gfn::new(page),
                sketch,
            });
        }
    }

    /// The pages of `run` that were pending `before` this look and are private, allowed, and not written since.
    fn quiet(&self, run: PageRun, before: &[u64]) -> Vec<u32> {
        let guest = &self.guest;
        let retry_stuck = guest.counters.passes.get().is_multiple_of(STUCK_PASSES);
        let mut written = self.found.iter().peekable();
        let mut quiet = Vec::new();
        for (word, &pending) in words(run).zip(before) {
            let mut bits = pending;
            while bits != 0 {
                let page = word as u32 * 64 + bits.trailing_zeros();
                bits &= bits - 1;
                if !run.numbers().contains(&page) || guest.table.state(page) != State::Private {
                    continue;
                }
                let start = guest.span(PageRun::of(page..page + 1)).start();
                while written.next_if(|found| found.end <= start).is_some() {}
                let busy = written.peek().is_some_and(|found| found.start <= start);
                if retry_stuck {
                    guest.table.clear_marks(page, mark::STUCK);
                }
                if !busy && !guest.table.is_marked(page, mark::EXCLUDED | mark::STUCK) {
                    quiet.push(page);
                }
            }
        }
        quiet
    }

    /// Looks for broken pages, but only at every fourth pass where the last look found none: with many mappings this
    /// look costs as much as the one for written pages, and nothing is lost by finding a break later.
    fn find_broken_unless_calm(
        &mut self,
        run: PageRun,
        hasher: &PageHasher,
        out: &mut Scanned,
    ) -> Result<(), Errno> {
        let chunk = (run.first.get() / CHUNK) as usize;
        if self.calm.len() <= chunk {
            self.calm.resize(chunk + 1, 0);
        }
        if self.calm[chunk] > 0 {
            self.calm[chunk] -= 1;
            return Ok(());
        }
        let table = &self.guest.table;
        let is_pool = |page| matches!(table.state(page), State::Shared | State::Broken);
        if !run.numbers().any(is_pool) {
            // Looking would find nothing.
            self.calm[chunk] = CALM_PASSES;
            return Ok(());
        }
        self.find_broken(self.guest.span(run), hasher, out)?;
        if self.found.is_empty() {
            self.calm[chunk] = CALM_PASSES;
        }
        Ok(())
    }

    /// Finds pool pages that the kernel has copied, and those of them that have been quiet for long enough.
    fn find_broken(&mut self, span: Span, hasher: &PageHasher, out: &mut Scanned) -> Result<(), Errno> {
        let mut found = std::mem::take(&mut self.found);
        found.clear();
        let result = self.pagemap.scan(span, Look::Broken, &mut found);
        let result = result.and_then(|()| self.find_broken_in_swap(span, &mut found));
        for stretch in &found {
            let first = self.guest.layout.page_at(stretch.start);
            let pages = ((stretch.end - stretch.start) / PAGE_SIZE) as u32;
            for page in first.into_iter().flat_map(|first| first..first + pages) {
                if self.note_broken(page, hasher) {
                    out.homecomers.push(page);
                }
            }
        }
        self.found = found;
        result
    }

    /// Adds to `found` those that the kernel has put into the host's swap.
    fn find_broken_in_swap(&mut self, span: Span, found: &mut Vec<Found>) -> Result<(), Errno> {
        if !self.host_swaps {
            return Ok(());
        }
        let mut swapped = Vec::new();
        self.pagemap.scan(span, Look::BrokenSwapped, &mut swapped)?;
        for stretch in swapped {
            let first = (stretch.start - span.start()) / PAGE_SIZE;
            let pages = span.sub(first, (stretch.end - stretch.start) / PAGE_SIZE);
            for (index, copied) in self.guest.swapped_copies(pages).into_iter().enumerate() {
                if copied {
                    let page = pages.sub(index, 1);
                    found.push(Found {
                        start: page.start(),
                        end: page.end(),
                        zero: false,
                    });
                }
            }
        }
        Ok(())
    }

    /// Whether the broken page has been quiet long enough to come home.
    fn note_broken(&mut self, page: u32, hasher: &PageHasher) -> bool {
        let guest = self.guest.clone();
        if guest.table.relabel(page, State::Shared, State::Broken) {
            guest.counters.cow_breaks.add(1);
        }
        if guest.table.state(page) != State::Broken || guest.table.is_marked(page, mark::EXCLUDED) {
            return false;
        }
        let sketch = sketch(guest.span(PageRun::of(page..page + 1)), hasher);
        let quiet = self.broken.entry(page).or_insert(Quiet { sketch, passes: 0 });
        if quiet.sketch == sketch {
            quiet.passes = quiet.passes.saturating_add(1);
        } else {
            *quiet = Quiet { sketch, passes: 1 };
        }
        quiet.passes > BROKEN_QUIET_PASSES
    }
}

/// The sketch of a single page as it is just now.
fn sketch(page: Span, hasher: &PageHasher) -> Sketch {
    let [sketch] = memory::sketches([page], [page], hasher);
    sketch
}

/// The words of the pending bitmap that cover `run`.
fn words(run: PageRun) -> std::ops::Range<usize> {
    run.first.get() as usize / 64..(run.end() as usize).div_ceil(64)
}
