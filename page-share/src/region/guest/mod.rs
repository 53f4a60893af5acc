//! One guest's memory, as all threads of its region share it: how is a page there, and who may grow?
//!
//! # Nouns
//! - The [`Guest`] is what the engine, the fault handler, the swap thread and callers all have: page table, layout,
//!   the two userfaultfds, counters and gate.
//! - The [`Layout`] says at which addresses of this process the guest's pages are. A [`MemoryRange`] is one piece of it.
//! - The [`Gate`] makes growth wait for credit while the host's reserve is used up.
//! - A [`Pin`] keeps pages where they are while a device has them.
//!
//! # Who owns whom
//! The guest owns the table, the descriptors and, through its ranges, the memory. Staging, the sampling area and stored
//! pages are their users' and only watched here.
//!
//! # Invariants
//! 1. Only the owner of a claim fills, moves or empties its pages.
//! 2. Every access that was left to a page's owner is woken when the page is settled ([`Guest::settle`]).
//! 3. No method waits for a user of guest memory, for a disk or for a manager.

mod adoptable;
mod anonymous;
mod filling;
mod gate;
mod layout;
mod managing;
mod pin;
mod watching;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use crate::page::Gfn;
use crate::region::error::AdoptError;
use crate::region::kernel::{
    GUEST_FEATURES, Mappings, POOL_FEATURES, Pagemap, Span, Userfault, check_release, explain,
};
use crate::region::options::Blocks;
use crate::region::run::PageRun;
use crate::region::stats::Counters;
use crate::region::table::{self, Claim, Marks, PageTable, Pinned, State, Waiters};

pub(crate) use adoptable::system;
pub use anonymous::AnonymousMemory;
pub(crate) use filling::Filled;
pub(crate) use gate::Admission;
pub(crate) use gate::Gate;
pub use gate::Growth;
pub(crate) use layout::Layout;
pub use layout::MemoryRange;
pub use pin::Pin;

/// One guest's memory as all threads of this process see it.
///
/// Field order is drop order: the memory itself goes last.
pub(crate) struct Guest {
    /// **A**: guest memory, staging, sampling area and area of re-homes.
    watch: Userfault,
    /// **P**: pool mappings.
    pool_watch: Userfault,
    table: PageTable,
    counters: Counters,
    gate: Gate,
    /// Mappings beyond the first ones.
    mappings: AtomicI64,
    /// A mapping is being moved: no page can be filled until it has been.
    moving: AtomicBool,
    /// Faults that wait for that.
    disturbed: AtomicUsize,
    /// The region ends: what cannot be read from the swap file now is lost, because nothing will read it later.
    giving_up: AtomicBool,
    /// The process ends its work with this region.
    closing: AtomicBool,
    pagemap: Pagemap,
    layout: Layout,
}

impl Guest {
    /// The guest whose memory is in `ranges`: looked at, and not watched yet.
    pub(crate) fn new(ranges: Vec<MemoryRange>, blocks: Blocks) -> Result<Self, AdoptError> {
        check_release()?;
        Mappings::of_process().check_start()?;
        let watch = Userfault::open(GUEST_FEATURES).map_err(explain)?;
        let pool_watch = Userfault::open(POOL_FEATURES).map_err(explain)?;
        let layout = adoptable::check(ranges, blocks, &watch)?;
        let pagemap = Pagemap::open().map_err(|source| AdoptError::System {
            what: "opening /proc/self/pagemap",
            source,
        })?;
        Ok(Self {
            watch,
            pool_watch,
            table: PageTable::new(layout.limit().get()),
            counters: Counters::default(),
            gate: Gate::default(),
            mappings: AtomicI64::new(0),
            moving: AtomicBool::new(false),
            disturbed: AtomicUsize::new(0),
            giving_up: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            pagemap,
            layout,
        })
    }

    /// Whose hands every page is in.
    pub(crate) fn table(&self) -> &PageTable {
        &self.table
    }

    /// What was done so far.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What growth waits at.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Where the pages are in this process.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What the kernel knows about this process's pages.
    pub(crate) fn pagemap(&self) -> &Pagemap {
        &self.pagemap
    }

    /// The addresses of `run`, which must be inside one range.
    pub(crate) fn span(&self, run: PageRun) -> Span {
        self.layout.span(run)
    }

    /// Claims the longest start of `run` whose pages are all in state `from` and, unless `pinned` is to be ignored,
    /// have no I/O in flight. `None` when already the first is not.
    pub(crate) fn claim_run(&self, run: PageRun, from: State, pinned: Pinned) -> Option<Claim> {
        table::claim_run(&self.table, self, run, from, pinned)
    }

    /// Settles `claim` and lets every access that was left to its owner try again.
    pub(crate) fn settle(&self, claim: Claim, to: State) {
        // Only of these is the swap thread given any.
        if matches!(claim.from(), State::Compressed | State::Swapped) {
            for page in claim.run().pages() {
                self.table.clear_marks(page, Marks::READING);
            }
        }
        table::settle(&self.table, self, claim, to);
    }

    /// The same, unless `claim` is what was left of a split: no page at all.
    pub(crate) fn settle_rest(&self, claim: Claim, to: State) {
        if claim.run().count > 0 {
            self.settle(claim, to);
        }
    }

    /// Puts a claim back as it was.
    pub(crate) fn unclaim(&self, claim: Claim) {
        let from = claim.from();
        self.settle(claim, from);
    }

    /// The state of `page` once it is in no thread's hands for a moment. [`State::InTransit`] only while the swap thread
    /// has it.
    pub(crate) fn settled_state(&self, page: Gfn) -> State {
        loop {
            if let Some(state) = self.table.settled_state(page) {
                return state;
            }
            std::thread::yield_now();
        }
    }

    /// Counts a change in the number of mappings.
    pub(crate) fn add_mappings(&self, change: i64) {
        self.mappings.fetch_add(change, Ordering::Relaxed);
        Mappings::of_process().add(change);
    }

    /// Mappings made beyond the first ones, estimated.
    pub(crate) fn mappings(&self) -> u64 {
        self.mappings.load(Ordering::Relaxed).max(0).unsigned_abs()
    }

    /// Whether a mapping is being moved: every try to fill a page would fail.
    pub(crate) fn is_moving(&self) -> bool {
        self.moving.load(Ordering::SeqCst)
    }

    pub(crate) fn set_moving(&self, moving: bool) {
        self.moving.store(moving, Ordering::SeqCst);
    }

    /// Faults that wait for a mapping that moves, or for what moved last.
    pub(crate) fn disturbed_faults(&self) -> usize {
        self.disturbed.load(Ordering::SeqCst)
    }

    /// Says how many faults wait for a mapping that moves.
    pub(crate) fn set_disturbed_faults(&self, faults: usize) {
        self.disturbed.store(faults, Ordering::SeqCst);
    }

    /// From now on, what cannot be read from the swap file is lost.
    pub(crate) fn give_up(&self) {
        self.giving_up.store(true, Ordering::SeqCst);
    }

    /// Whether what cannot be read is lost.
    pub(crate) fn is_giving_up(&self) -> bool {
        self.giving_up.load(Ordering::SeqCst)
    }

    /// Whether the region's threads are to end.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Says whether the region's threads are to end.
    pub(crate) fn set_closing(&self, closing: bool) {
        self.closing.store(closing, Ordering::SeqCst);
    }
}

impl Waiters for Guest {
    fn wake_missing(&self, run: PageRun) {
        self.watch.wake(self.span(run));
    }

    fn wake_protected(&self, run: PageRun) {
        self.pool_watch.wake(self.span(run));
    }

    fn protects_merges(&self) -> bool {
        self.gate.is_closed()
    }
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}
