//! Setting a region up: what is asked for, what is refused, and the first look at the memory.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::region::engine::Engine;
use crate::region::error::AdoptError;
use crate::region::faults::handler::Handler;
use crate::region::faults::swap_thread::Swapper;
use crate::region::guest::adoptable::{self, system};
use crate::region::guest::gate::Gate;
use crate::region::guest::layout::MemoryRange;
use crate::region::guest::shared::Guest;
use crate::region::kernel::features::{check_release, explain};
use crate::region::kernel::mappings::Mappings;
use crate::region::kernel::memory::{Arena, HUGE_PAGES};
use crate::region::kernel::userfault::{GUEST_FEATURES, POOL_FEATURES, Pagemap, Userfault, Watch};
use crate::region::merge::huge::manage;
use crate::region::random::Random;
use crate::region::reclaim::sample::SAMPLE_LIMIT;
use crate::region::reclaim::squeeze::Keeping;
use crate::region::reclaim::store::Store;
use crate::region::run::PageRun;
use crate::region::scan::priorities::Hints;
use crate::region::scan::scanner::Scanner;
use crate::region::stats::Counters;
use crate::region::table::state::{PageTable, State};
use crate::region::{PATIENCE, Region};
use crate::swap::Swap;

/// How the region's blocks of 2 MiB start out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Blocks {
    /// Managed in small pages from the start: they can be shared, sampled and swapped.
    #[default]
    Managed,
    /// Left to the kernel as huge pages until [`Region::split_blocks`]: best while memory is plentiful.
    Huge,
}

/// What a region is made with: the default, and what the methods change of it.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// How blocks start out.
    pub blocks: Blocks,
    /// Most bytes of memory for compressed pages; 0 means that nothing can be compressed.
    pub store_bytes: usize,
    /// Where swapped pages go; without it nothing can be swapped.
    pub swap: Option<Swap>,
    /// Called first thing on each thread that the region starts, for instance to confine it.
    pub thread_started: ThreadStarted,
}

impl Options {
    /// These options with blocks that start out as `blocks`.
    #[must_use]
    pub fn with_blocks(self, blocks: Blocks) -> Self {
        Self { blocks, ..self }
    }

    /// These options with at most `bytes` bytes of memory for compressed pages.
    #[must_use]
    pub fn with_store_bytes(self, bytes: usize) -> Self {
        Self {
            store_bytes: bytes,
            ..self
        }
    }

    /// These options with a file for swapped pages, or with none.
    #[must_use]
    pub fn with_swap(self, swap: impl Into<Option<Swap>>) -> Self {
        Self {
            swap: swap.into(),
            ..self
        }
    }

    /// These options with what is called first on each thread of the region.
    #[must_use]
    pub fn with_thread_started(self, started: ThreadStarted) -> Self {
        Self {
            thread_started: started,
            ..self
        }
    }
}

/// A region's threads, by what they do. Every thread is here, so that a match that confines each of them notices when
/// there is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RegionThread {
    /// Resolves faults; never allocates, never waits for another thread.
    FaultHandler,
    /// Reads swapped pages that were touched.
    SwapIns,
    /// Scans, merges and talks to the manager ([`crate::ScanThread`]).
    Scanner,
}

/// What to call when a thread starts, if anything.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThreadStarted(pub Option<fn(RegionThread)>);

impl ThreadStarted {
    pub(crate) fn tell(self, thread: RegionThread) {
        if let Some(call) = self.0 {
            call(thread);
        }
    }
}

impl Region {
    /// Takes over a guest's memory. The guest may be running already.
    ///
    /// Nothing changes for the guest: what is there stays, what is not reads zero. The memory is not copied at a fork
    /// and not in a core dump from now on.
    ///
    /// # Errors
    /// See [`AdoptError`]; nothing has changed then, except perhaps those flags.
    pub fn adopt(ranges: Vec<MemoryRange>, options: Options) -> Result<Self, AdoptError> {
        check_release()?;
        Mappings::of_process().check_start()?;
        let watch = Userfault::open(GUEST_FEATURES).map_err(explain)?;
        let pool_watch = Userfault::open(POOL_FEATURES).map_err(explain)?;
        let layout = adoptable::check(ranges, options.blocks, &watch)?;
        let store = Store::new(options.store_bytes).map_err(|source| AdoptError::System {
            what: "reserving address space for compressed pages",
            source,
        })?;
        let sampling = Arena::reserve(SAMPLE_LIMIT as usize).map_err(system("reserving memory"))?;
        watch
            .register(sampling.span(), Watch::Missing)
            .map_err(system("watching memory"))?;
        let guest = Arc::new(Guest {
            watch,
            pool_watch,
            table: PageTable::new(layout.limit()),
            counters: Counters::default(),
            sampling,
            keeping: Keeping::new(store, options.swap),
            gate: Gate::default(),
            mappings: AtomicI64::new(0),
            moving: AtomicBool::new(false),
            disturbed: AtomicUsize::new(0),
            giving_up: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            pagemap: std::fs::File::open("/proc/self/pagemap").map_err(|source| AdoptError::System {
                what: "opening /proc/self/pagemap",
                source,
            })?,
            layout,
        });
        Self::start(guest, options.blocks, options.thread_started)
    }

    fn start(guest: Arc<Guest>, blocks: Blocks, started: ThreadStarted) -> Result<Self, AdoptError> {
        let io = |what| move |source| AdoptError::System { what, source };
        let mut engine = Engine::new(guest.clone()).map_err(io("setting up the engine"))?;
        let scanner = Scanner::new().map_err(io("drawing random numbers"))?;
        let random = Random::new().map_err(io("drawing random numbers"))?;
        // Before there are threads: should it fail, the descriptor closes and nothing watches any more. A thread that touches a
        // missing page meanwhile waits for the handler.
        take_over(&guest, blocks, &mut engine.pagemap)?;
        let (mut swapper, swap_ins) =
            Swapper::start(guest.clone(), started).map_err(io("starting the swap thread"))?;
        // Without a sender the swap thread ends, and it must know why.
        let kept_for_failure = swap_ins.clone();
        let handler = Handler::start(guest.clone(), swap_ins, started).map_err(|source| {
            guest.closing.store(true, Ordering::SeqCst);
            drop(kept_for_failure);
            swapper.stop();
            io("starting the fault handler")(source)
        })?;
        let mappings = Mappings::of_process();
        mappings.count_region(1);
        mappings.recount();
        Ok(Self {
            guest,
            engine: Mutex::new(engine),
            scanner: Mutex::new(scanner),
            random,
            hints: Hints::default(),
            handler,
            swapper,
            patience: PATIENCE,
            thread_started: started,
        })
    }
}

/// Finds out what every page is, and watches those that are managed from the start.
fn take_over(guest: &Guest, blocks: Blocks, pagemap: &mut Pagemap) -> Result<(), AdoptError> {
    for run in guest.layout.runs() {
        for (part, huge) in blocks_of(run, blocks) {
            let claim = guest.table.found(part);
            if huge {
                // Advice about huge pages is a wish: without it the block is merely unwatched.
                let _ = guest.span(part).flag_huge();
                guest.settle(claim, State::Huge);
            } else if let Err(refused) = manage(guest, claim, pagemap) {
                let error = refused.error;
                refused.leave_unwatched(guest);
                return Err(system("watching guest memory")(error));
            }
        }
    }
    Ok(())
}

/// The parts of a range and whether each is whole huge blocks.
fn blocks_of(run: PageRun, blocks: Blocks) -> Vec<(PageRun, bool)> {
    let start = run.first.get().next_multiple_of(HUGE_PAGES).min(run.end());
    let end = (run.end() / HUGE_PAGES * HUGE_PAGES).max(start);
    let parts = match blocks {
        Blocks::Managed => vec![(run, false)],
        Blocks::Huge => vec![
            (PageRun::of(run.first.get()..start), false),
            (PageRun::of(start..end), true),
            (PageRun::of(end..run.end()), false),
        ],
    };
    parts.into_iter().filter(|(part, _)| part.count > 0).collect()
}
