//! The scan: which pages were written, which have gone quiet, which pool pages broke.
//!
//! In two steps, because arming drops KVM's mappings of everything it walks over: a plain look finds the written
//! runs, and only those are armed, or what lies closely between two of them; what the arming call returns is what counts.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::io::Errno;

use crate::hash::{PageHasher, Sketch};
use crate::page::{Gfn, PAGE_SIZE};
use crate::port::Report;
use crate::region::guest::Guest;
use crate::region::kernel::{Found, Look, sketches};
use crate::region::merge::Merger;
use crate::region::run::{PageRun, runs_of};
use crate::region::scan::CHUNK;
use crate::region::scan::backoff::Looked;
use crate::region::table::{Marks, State};

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
pub(super) struct Scanned {
    /// How much of it had been written.
    pub(super) looked: Looked,
    /// Quiet pages, in page order, not sketched yet.
    pub(super) quiet: Vec<Gfn>,
    /// Quiet pages to report, in page order.
    pub(super) reports: Vec<Report>,
    /// Quiet pages that look like zeros.
    pub(super) zeros: Vec<Gfn>,
    /// Broken pages that have been quiet long enough to come home.
    pub(super) rehome_candidates: Vec<Gfn>,
}

/// Looks at a guest's memory, one chunk at a time.
pub(super) struct Looker {
    guest: Arc<Guest>,
    /// What the last look found.
    found: Vec<Found>,
    /// For each chunk, passes to go before broken pages are looked for again.
    calm: Vec<u8>,
    /// The host has swap space of its own, into which the kernel may put broken pages. As at the pass's beginning: it
    /// comes and goes.
    host_swaps: bool,
    /// /proc/swaps, opened once: a process that is confined later cannot open anything.
    swaps: Option<File>,
}

impl Looker {
    /// For the memory of `guest`.
    pub(super) fn new(guest: Arc<Guest>) -> Self {
        Self {
            guest,
            found: Vec::with_capacity(1024),
            calm: Vec::new(),
            host_swaps: true,
            swaps: File::open("/proc/swaps").ok(),
        }
    }

    /// Finds out whether the host swaps at present. A kernel that cannot says so by having no list.
    pub(super) fn look_for_host_swap(&mut self) {
        let mut text = [0; 512];
        self.host_swaps = self.swaps.as_ref().is_some_and(|swaps| {
            let Ok(len) = swaps.read_at(&mut text, 0) else {
                return true;
            };
            // One line of headings, and one for each swap space.
            text[..len].iter().filter(|&&byte| byte == b'\n').count() > 1
        });
    }

    /// Looks at `run`, which is inside one range and starts and ends at multiples of 64 pages or the range's ends. Broken
    /// pages are noted with `merger`, by their sketches under `hasher`. [`Looker::sketch`] what comes out as quiet.
    pub(super) fn look(
        &mut self,
        run: PageRun,
        merger: &mut Merger,
        hasher: &PageHasher,
        out: &mut Scanned,
    ) -> Result<(), Errno> {
        let before: Vec<u64> = words(run)
            .map(|word| self.guest.table().pending_word(word))
            .collect();
        self.find_written(run)?;
        out.looked = self.looked(run);
        out.quiet = self.quiet(run, &before);
        if self.is_due_for_broken(run) {
            let looked = self.find_broken(run);
            self.note_broken(merger, hasher, out);
            looked?;
            if self.found.is_empty() {
                self.calm[chunk_of(run)] = CALM_PASSES;
            }
        }
        self.guest.counters().pages_scanned.add(u64::from(run.count));
        Ok(())
    }

    /// What the look at `run` has just found.
    fn looked(&self, run: PageRun) -> Looked {
        let written: usize = self.found.iter().map(|found| found.end - found.start).sum();
        if written == 0 {
            return Looked::default();
        }
        let table = self.guest.table();
        let own = |page: &Gfn| table.state(*page) == State::Private;
        Looked {
            own: run.pages().filter(own).count() as u32,
            written: (written / PAGE_SIZE) as u32,
        }
    }

    /// Both steps: finds and arms what was written; it is pending afterwards and was not quiet.
    fn find_written(&mut self, run: PageRun) -> Result<(), Errno> {
        self.found.clear();
        self.guest.scan(run, Look::Written, &mut self.found)?;
        self.arm_all()
    }

    fn arm_all(&self) -> Result<(), Errno> {
        let written = &self.found;
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
            for run in self.without_excluded(start, end) {
                self.guest.scan(run, Look::WrittenAndArm, &mut armed)?;
            }
        }
        for found in &armed {
            self.note_written(*found);
        }
        Ok(())
    }

    /// The pages between `start` and `end` that may be armed.
    fn without_excluded(&self, start: usize, end: usize) -> Vec<PageRun> {
        let Some(run) = self.guest.layout().run_at(start, end) else {
            return Vec::new();
        };
        let table = self.guest.table();
        let is_allowed = |page: &Gfn| !table.is_marked(*page, Marks::EXCLUDED);
        match run.pages().all(|page| is_allowed(&page)) {
            true => vec![run],
            false => runs_of(run.pages().filter(is_allowed)),
        }
    }

    fn note_written(&self, found: Found) {
        let Some(run) = self.guest.layout().run_at(found.start, found.end) else {
            return;
        };
        let table = self.guest.table();
        self.guest.counters().pages_written.add(u64::from(run.count));
        for page in run.pages() {
            if found.zero {
                // The kernel's zero page: nothing to merge, however it came there.
                table.relabel(page, State::Private, State::Zero);
                table.set_pending(page, false);
            } else {
                table.relabel(page, State::Zero, State::Private);
                table.clear_marks(page, Marks::STUCK | Marks::UNSHARABLE);
                table.set_pending(page, true);
            }
        }
    }

    /// The pages of `run` that were pending `before` this look and are private, allowed, and not written since.
    fn quiet(&self, run: PageRun, before: &[u64]) -> Vec<Gfn> {
        let (guest, table) = (&self.guest, self.guest.table());
        let retry_stuck = guest.counters().passes.get().is_multiple_of(STUCK_PASSES);
        let mut written = self.found.iter().peekable();
        let mut quiet = Vec::new();
        for (word, &pending) in words(run).zip(before) {
            let mut bits = pending;
            while bits != 0 {
                let page = Gfn::new(word as u32 * 64 + bits.trailing_zeros());
                bits &= bits - 1;
                if !run.contains(page) || table.state(page) != State::Private {
                    continue;
                }
                let start = guest.span(PageRun::one(page)).start();
                while written.next_if(|found| found.end <= start).is_some() {}
                let busy = written.peek().is_some_and(|found| found.start <= start);
                if retry_stuck {
                    table.clear_marks(page, Marks::STUCK);
                }
                if !busy && !table.is_marked(page, Marks::EXCLUDED | Marks::STUCK) {
                    quiet.push(page);
                }
            }
        }
        quiet
    }

    /// Whether to look for broken pages: only at every fourth pass where the last look found none. With many mappings this
    /// look costs as much as the one for written pages, and nothing is lost by finding a break later.
    fn is_due_for_broken(&mut self, run: PageRun) -> bool {
        let chunk = chunk_of(run);
        if self.calm.len() <= chunk {
            self.calm.resize(chunk + 1, 0);
        }
        if self.calm[chunk] > 0 {
            self.calm[chunk] -= 1;
            return false;
        }
        let table = self.guest.table();
        let due = run.pages().any(|page| table.state(page).is_pool());
        if !due {
            // Looking would find nothing.
            self.calm[chunk] = CALM_PASSES;
        }
        due
    }

    /// Finds pool pages that the kernel has copied, those that it has put into the host's swap included.
    fn find_broken(&mut self, run: PageRun) -> Result<(), Errno> {
        self.found.clear();
        self.guest.scan(run, Look::Broken, &mut self.found)?;
        if !self.host_swaps {
            return Ok(());
        }
        let (span, mut swapped) = (self.guest.span(run), Vec::new());
        self.guest.scan(run, Look::BrokenSwapped, &mut swapped)?;
        for found in swapped {
            let first = (found.start - span.start()) / PAGE_SIZE;
            let pages = span.sub(first, (found.end - found.start) / PAGE_SIZE);
            let copies = self.guest.pagemap().swapped_copies(pages);
            for (index, _) in copies.into_iter().enumerate().filter(|(_, copied)| *copied) {
                let page = pages.sub(index, 1);
                self.found.push(Found {
                    start: page.start(),
                    end: page.end(),
                    zero: false,
                });
            }
        }
        Ok(())
    }

    /// Notes the broken pages found, and those of them that have been quiet for long enough to come home.
    fn note_broken(&self, merger: &mut Merger, hasher: &PageHasher, out: &mut Scanned) {
        let (guest, table) = (&self.guest, self.guest.table());
        let runs = self.found.iter();
        let runs = runs.filter_map(|found| guest.layout().run_at(found.start, found.end));
        for page in runs.flat_map(PageRun::pages) {
            if table.relabel(page, State::Shared, State::Broken) {
                guest.counters().cow_breaks.add(1);
            }
            if table.state(page) != State::Broken || table.is_marked(page, Marks::EXCLUDED) {
                continue;
            }
            let [sketch] = sketch([page], [page], guest, hasher);
            if merger.note_broken(page, sketch) {
                out.rehome_candidates.push(page);
            }
        }
    }

    /// Sketches those of the quiet pages that are still private.
    pub(super) fn sketch(&self, quiet: &[Gfn], hasher: &PageHasher, out: &mut Scanned) {
        let (guest, table) = (&self.guest, self.guest.table());
        let quiet: Vec<Gfn> = quiet
            .iter()
            .copied()
            .filter(|&page| table.state(page) == State::Private)
            .collect();
        for &page in &quiet {
            table.set_pending(page, false);
        }
        let (groups, rest) = quiet.as_chunks::<ABREAST>();
        let mut sketches = Vec::with_capacity(quiet.len());
        for (at, group) in groups.iter().enumerate() {
            let next = groups.get(at + 1).unwrap_or(group);
            sketches.extend(sketch(*group, *next, guest, hasher));
        }
        sketches.extend(
            rest.iter()
                .flat_map(|&page| sketch([page], [page], guest, hasher)),
        );
        let zeros = out.zeros.len();
        for (&page, &sketch) in quiet.iter().zip(&sketches) {
            if sketch == hasher.of_zeros() {
                out.zeros.push(page);
            } else if !table.is_marked(page, Marks::UNSHARABLE) {
                out.reports.push(Report { gfn: page, sketch });
            }
        }
        let hashed = quiet.len() - (out.zeros.len() - zeros);
        guest.counters().pages_hashed.add(hashed as u64);
    }
}

/// The sketches of `pages` as they are just now. `next` will be read soon.
fn sketch<const N: usize>(
    pages: [Gfn; N],
    next: [Gfn; N],
    guest: &Guest,
    hasher: &PageHasher,
) -> [Sketch; N] {
    let span = |page: Gfn| guest.span(PageRun::one(page));
    sketches(pages.map(span), next.map(span), hasher)
}

fn chunk_of(run: PageRun) -> usize {
    (run.first.get() / CHUNK) as usize
}

/// The words of the pending bitmap that cover `run`.
fn words(run: PageRun) -> std::ops::Range<usize> {
    run.first.get() as usize / 64..(run.end().get() as usize).div_ceil(64)
}
