//! One guest's memory, as its VMM sees and manages it: what can be asked of it, and which part does it?
//!
//! # Nouns
//! - A [`Region`] is the front: every method of it takes one part below, for one short piece of work.
//! - The [`Engine`] is what one thread at a time does to pages: the merger and the reclaimer under one lock.
//! - The folders are its parts, from the bottom up. No one of them knows of those below it in this table.
//!
//! | folder | owner | answers |
//! |---|---|---|
//! | `kernel` | [`kernel::Arena`], [`kernel::Userfault`], [`kernel::Pagemap`] | what the kernel does for us |
//! | `table` | [`table::PageTable`] | in whose hands a page is, and where its content is |
//! | `guest` | [`guest::Guest`] | how pages are filled, moved and watched, and who may grow |
//! | `mover` | [`mover::Mover`] | how pages are taken so that no thread can write them |
//! | `merge` | [`merge::Merger`] | how pages become mappings of a pool and come back |
//! | `reclaim` | [`reclaim::ColdStore`], [`reclaim::Reclaimer`] | how pages leave memory and come back |
//! | `faults` | [`faults::Handler`], [`faults::SwapThread`] | what happens at a touch |
//! | `scan` | [`scan::Scanner`] | which pages can be merged, and what the manager says |
//!
//! # Who owns whom
//! The region owns the engine, the scanner and the two threads. The guest, the cold store and the sampling area are
//! shared by all of these.
//!
//! # Invariants
//! Those of the crate; each folder's page has its own.

mod adopt;
mod atomic;
mod broken;
mod ending;
mod engine;
mod error;
mod faults;
mod growth;
mod guest;
mod kernel;
mod merge;
mod mover;
mod options;
mod peek;
mod random;
mod reclaim;
mod run;
mod scan;
mod scan_thread;
mod stats;
mod table;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::page::Gfn;
use crate::port::Port;

use engine::{Engine, lock};
use faults::{Handler, SwapThread};
use guest::Guest;
use kernel::thread_cpu;
use mover::BATCH;
use random::Random;
use reclaim::{ColdStore, SampleArea};
use scan::{Chunks, Priorities, Scanner};
use table::Marks;

pub use error::AdoptError;
pub use guest::{AnonymousMemory, Growth, MemoryRange, Pin};
pub use merge::PoolSize;
pub use options::{Blocks, Options, RegionThread, ThreadStarted};
pub use reclaim::{
    COMPRESSED_LIMIT, Compressed, Compressor, Release, Sample, Store, StoreError, StoreHandle, SwapOutError,
};
pub use run::PageRun;
pub use scan::Step;
pub use scan_thread::{Pace, ScanThread};
pub use stats::Stats;
pub use table::State;

/// Kernel memory for one mapping, bytes.
const MAPPING_BYTES: u64 = 231;

/// How long a region that is dropped waits for I/O in flight, for mappings, and for a swap file that cannot be read. And
/// how long for reads under way, once it has given up what cannot be read.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks at what is in other hands.
const PAUSE: Duration = Duration::from_millis(1);

/// One guest's memory under management.
///
/// All methods may be called from any thread at any time, while the guest runs. They take the engine lock for one
/// short piece of work at a time. None of them may be called by a thread that a *user of guest memory* waits for
/// while it holds a page, and none is called by the fault handler.
///
/// Dropping a region brings everything back into plain anonymous memory first and hands its pool references back;
/// [`Region::discard`] is the quick way when the memory will not be read again.
pub struct Region {
    guest: Arc<Guest>,
    cold: Arc<ColdStore>,
    area: Arc<SampleArea>,
    engine: Mutex<Engine>,
    scanner: Mutex<Scanner>,
    /// Not the scanner's, which may be waiting for the manager: a caller must not wait with it.
    random: Random,
    priorities: Priorities,
    handler: Handler,
    swap_thread: SwapThread,
    /// [`PATIENCE`], but for tests.
    patience: Duration,
    thread_started: ThreadStarted,
}

impl Region {
    /// Joins a sharing domain: from now on passes report to the manager behind `port` and map its pool.
    ///
    /// The manager was told of at least [`Region::page_limit`] pages when it made the port.
    ///
    /// # Errors
    /// When the pool cannot be mapped.
    pub fn connect(&self, port: Box<dyn Port>) -> io::Result<()> {
        self.scanner().connect(&self.engine, port)
    }

    /// One more than the highest page number: what a manager should know this guest's size as.
    pub fn page_limit(&self) -> u32 {
        self.guest.layout().limit().get()
    }

    /// One whole pass, however long it takes: every page is looked at once, and what can be merged is. A page is
    /// hashed at the first pass that finds it unwritten since the pass before.
    pub fn scan_pass(&self) {
        while !self.scan(u32::MAX, Chunks::All).pass_finished {}
    }

    /// The next piece of the pass under way: about `pages` pages scanned or merged. Chunks are 2 MiB, so a step may do
    /// up to 511 pages more.
    ///
    /// Chunks that are written all the time, and where looking brought nothing, rest for up to 40 s: steps go past them.
    /// Between two steps at most 100 ms count. [`Region::prioritize`] and [`Region::scan_pass`] look all the same.
    pub fn scan_step(&self, pages: u32) -> Step {
        self.scan(pages, Chunks::Due)
    }

    fn scan(&self, pages: u32, chunks: Chunks) -> Step {
        let before = thread_cpu();
        let step = {
            let mut scanner = self.scanner();
            let runs = self.priorities.take().into_iter();
            runs.for_each(|run| scanner.prioritize(run));
            scanner.step(&self.engine, pages, chunks)
        };
        self.cold.trim();
        let cpu = (thread_cpu() - before).as_nanos() as u64;
        self.guest.counters().scan_cpu_ns.add(cpu);
        step
    }

    /// These pages probably equal others, for instance because they were just read from a disk that guests share:
    /// looks at them in the next two steps, before anything else. Never waits, so that device threads may call it; of
    /// more than 4096 runs between two steps the oldest are forgotten, and found by the pass.
    pub fn prioritize(&self, run: PageRun) {
        self.priorities.add(run);
    }

    /// Leaves these pages alone from now on: rings, and pages that devices write all the time. What of them is
    /// merged, compressed or swapped comes back first. Returns the number of pages that did.
    pub fn exclude(&self, run: PageRun) -> u32 {
        let mut back = 0;
        for part in self.parts(run) {
            for page in part.pages() {
                self.guest.table().add_marks(page, Marks::EXCLUDED);
            }
            back += self.restore(part);
        }
        self.return_references();
        back
    }

    /// Takes back what [`Region::exclude`] said: these pages are like others again from the next pass on.
    pub fn include(&self, run: PageRun) {
        for page in self.parts(run).into_iter().flat_map(PageRun::pages) {
            self.guest.table().clear_marks(page, Marks::EXCLUDED);
        }
    }

    /// The guest gives `run` up; all of it reads zero when touched again. Parts that are not memory of this guest are
    /// ignored. Returns the number of pages that had content.
    pub fn release(&self, run: PageRun, why: Release) -> u32 {
        let count = self
            .parts(run)
            .into_iter()
            .map(|part| self.release_part(part, why))
            .sum();
        self.return_references();
        self.cold.trim();
        count
    }

    /// Waits for pages that are being read, without the engine lock.
    fn release_part(&self, part: PageRun, why: Release) -> u32 {
        let (mut count, mut left) = (0, Some(part));
        while let Some(run) = left {
            let (released, rest) = lock(&self.engine).release(run, why);
            count += released;
            left = rest;
            if left.is_some() {
                std::thread::sleep(PAUSE);
            }
        }
        count
    }

    /// The guest takes ballooned pages back.
    pub fn deflate(&self, run: PageRun) {
        for part in self.parts(run) {
            lock(&self.engine).reclaimer().deflate(part);
        }
    }

    /// Takes `n` random private pages, at most 1024, for a sample; the next touch of each brings it back and is
    /// counted. Ends a sample that is still running. Returns the number of pages taken.
    pub fn start_sample(&self, n: u32) -> u32 {
        // A caller that samples calls this now and then, also where nothing is scanned.
        self.cold.trim();
        let mut engine = lock(&self.engine);
        engine.reclaimer().start_sample(n, &mut || self.random.draw())
    }

    /// Ends the sample and gives back what was not touched.
    pub fn finish_sample(&self) -> Sample {
        lock(&self.engine).reclaimer().finish_sample()
    }

    /// Moves what is private of `run` into the compressed store; what does not compress to three quarters, or for
    /// which the store has no room, stays. Pages of zeros become the zero page instead, counted in `pages_zeroed`.
    /// Returns the number of pages that left memory.
    pub fn compress(&self, run: PageRun) -> u32 {
        let pieces = self.parts(run).into_iter().flat_map(|part| part.pieces(BATCH));
        pieces.map(|piece| lock(&self.engine).compress(piece)).sum()
    }

    /// Moves what is private of `run` into the swap file. Pages of zeros become the zero page instead, counted in
    /// `pages_zeroed`. Returns the number of pages that left memory.
    ///
    /// # Errors
    /// When there is no swap file, or it is full or fails. Pages that could not be written are where they were.
    pub fn swap_out(&self, run: PageRun) -> Result<u32, SwapOutError> {
        let pieces = self.parts(run).into_iter().flat_map(|part| part.pieces(BATCH));
        pieces.map(|piece| lock(&self.engine).swap_out(piece)).sum()
    }

    /// Brings back what of `run` is compressed or swapped. Returns the number of pages.
    pub fn bring_back(&self, run: PageRun) -> u32 {
        let pieces = self.parts(run).into_iter().flat_map(|part| part.pieces(BATCH));
        let count = pieces.map(|piece| lock(&self.engine).bring_back(piece)).sum();
        self.cold.trim();
        count
    }

    /// Up to `n` private pages that were not written during the last pass, from a random place on: what to compress
    /// or swap after sharing was tried.
    pub fn cold_pages(&self, n: u32) -> Vec<PageRun> {
        lock(&self.engine).reclaimer().cold_pages(n, self.somewhere())
    }

    /// Up to `n` private pages to part with when memory is needed now: those that [`Region::cold_pages`] names, and where
    /// they do not suffice any others.
    pub fn victims(&self, n: u32) -> Vec<PageRun> {
        lock(&self.engine).reclaimer().victims(n, self.somewhere())
    }

    /// A page by chance.
    fn somewhere(&self) -> Gfn {
        Gfn::new((self.random.draw() % u64::from(self.page_limit().max(1))) as u32)
    }

    /// Gives every page memory of its own again, for instance before a migration. Returns the number of pages.
    pub fn unshare_all(&self) -> u32 {
        let mut count = 0;
        for part in self.guest.layout().runs() {
            for piece in part.pieces(BATCH) {
                count += lock(&self.engine).merger().rehome(piece);
            }
        }
        self.return_references();
        count
    }

    /// Marks pages as being read or written by pinning I/O (O_DIRECT, io_uring, VFIO): until the mark is dropped they
    /// stay where they are. Take it before the I/O starts. `None` when part of `run` is not this guest's memory or 255
    /// marks are on a page already.
    pub fn pin(&self, run: PageRun) -> Option<Pin> {
        Pin::new(&self.guest, run)
    }

    /// Splits up to `blocks` huge blocks into managed pages, where there are any. Returns the number split.
    pub fn split_blocks(&self, blocks: u32) -> u32 {
        lock(&self.engine)
            .merger()
            .split_blocks(blocks, self.random.draw())
    }

    /// Splits the huge blocks that `run` touches. Returns the number split.
    pub fn split_run(&self, run: PageRun) -> u32 {
        lock(&self.engine).merger().split_run(run)
    }

    /// Joins the block of 2 MiB that `first` starts to a huge page again, when all its pages are private. Whether it
    /// is huge now.
    pub fn rebuild_block(&self, first: Gfn) -> bool {
        lock(&self.engine).merger().rebuild_block(first)
    }

    /// What became of page `page` by now, or [`State::Hole`] where there is no such page.
    pub fn state(&self, page: Gfn) -> State {
        if page.get() < self.guest.table().pages() {
            self.guest.table().state(page)
        } else {
            State::Hole
        }
    }

    /// The pools of which this region may have pages, that of the manager it was connected to last at the end. While the
    /// gate is open, pages of the others move there by and by. Until the last region has let go of a pool, all of it
    /// stays in memory.
    pub fn pools(&self) -> Vec<PoolSize> {
        lock(&self.engine).merger().pools().sizes()
    }

    /// Counters and page counts. Never waits for the disk.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::new(self.guest.counters(), self.guest.table().census());
        stats.mappings = self.guest.mappings();
        let (swap, spare) = self.cold.swap_bytes();
        stats.metadata_bytes = self.guest.table().bytes() + stats.mappings * MAPPING_BYTES + swap as u64;
        stats.swap_spare_bytes = spare;
        stats.store_bytes = self.cold.store_bytes() as u64;
        stats
    }

    /// Ends the region without bringing anything back: all of the guest's memory reads zero afterwards. For a guest
    /// that has ended.
    pub fn discard(self) {
        for part in self.guest.layout().runs() {
            for piece in part.pieces(BATCH * 16) {
                self.release_part(piece, Release::Report);
            }
        }
    }

    /// The parts of `run` that are this guest's memory.
    fn parts(&self, run: PageRun) -> Vec<PageRun> {
        self.guest.layout().clip(run).collect()
    }

    fn scanner(&self) -> MutexGuard<'_, Scanner> {
        self.scanner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns references at once when the scanner is idle; otherwise it does so itself at its next report.
    fn return_references(&self) {
        if let Ok(mut scanner) = self.scanner.try_lock() {
            scanner.return_references(&self.engine);
        }
    }

    /// Brings everything of `run` back into memory of its own.
    fn restore(&self, run: PageRun) -> u32 {
        let pieces = run.pieces(BATCH);
        pieces.map(|piece| lock(&self.engine).restore(piece)).sum()
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Region")
            .field("guest", &self.guest)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
