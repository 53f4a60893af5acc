//! Setting a region up: what is asked for, what is refused, and the first look at the memory.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize};
use std::sync::{Arc, Mutex};

use crate::page::PAGE_SIZE;
use crate::region::Region;
use crate::region::engine::Engine;
use crate::region::error::AdoptError;
use crate::region::features::{check_release, explain};
use crate::region::gate::Gate;
use crate::region::guest::Guest;
use crate::region::handler::Handler;
use crate::region::hints::Hints;
use crate::region::huge::manage;
use crate::region::layout::{Layout, MemoryRange};
use crate::region::mappings::Mappings;
use crate::region::memory::{Arena, HUGE_PAGES};
use crate::region::run::PageRun;
use crate::region::sample::SAMPLE_LIMIT;
use crate::region::scanner::Scanner;
use crate::region::squeeze::Keeping;
use crate::region::state::{PageTable, State};
use crate::region::stats::Counters;
use crate::region::swapper::Swapper;
use crate::region::userfault::{GUEST_FEATURES, POOL_FEATURES, Userfault, Watch};
use crate::store::Store;
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

/// What a region is made with.
#[derive(Debug, Default)]
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

/// A region's threads, by what they do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RegionThread {
    /// Resolves faults; never allocates, never waits for anybody.
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
        let watch = Userfault::open(GUEST_FEATURES).map_err(explain)?;
        let pool_watch = Userfault::open(POOL_FEATURES).map_err(explain)?;
        let layout = Layout::new(ranges).filter(|layout| layout.runs().all(|run| run.count > 0));
        let layout = layout.ok_or(AdoptError::Ranges)?;
        check_memory(&layout)?;
        if options.blocks == Blocks::Huge {
            check_alignment(&layout)?;
        }
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
            keeping: Keeping {
                store: Mutex::new(store),
                swap: options.swap.map(Mutex::new),
            },
            gate: Gate::default(),
            mappings: AtomicI64::new(0),
            moving: AtomicBool::new(false),
            disturbed: AtomicUsize::new(0),
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
        let (swapper, swap_ins) =
            Swapper::start(guest.clone(), started).map_err(io("starting the swap thread"))?;
        let handler =
            Handler::start(guest.clone(), swap_ins, started).map_err(io("starting the fault handler"))?;
        for run in guest.layout.runs() {
            for (part, huge) in blocks_of(run, blocks) {
                let claim = guest.table.found(part);
                if huge {
                    // Advice about huge pages is a wish: without it the block is merely unwatched.
                    let _ = guest.span(part).flag_huge();
                    guest.table.settle(claim, State::Huge);
                } else {
                    manage(&guest, claim, &mut engine.pagemap);
                }
            }
        }
        let mappings = Mappings::of_process();
        mappings.count_region(1);
        mappings.recount();
        Ok(Self {
            guest,
            engine: Mutex::new(engine),
            scanner: Mutex::new(scanner),
            hints: Hints::default(),
            handler,
            swapper,
            thread_started: started,
        })
    }
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

fn check_alignment(layout: &Layout) -> Result<(), AdoptError> {
    let huge = HUGE_PAGES as usize * PAGE_SIZE;
    let same = |run: &PageRun| {
        let guest = (run.first.get() % HUGE_PAGES) as usize * PAGE_SIZE;
        layout.span(*run).start() % huge == guest
    };
    match layout.runs().find(|run| !same(run)) {
        Some(run) => Err(AdoptError::Misaligned { run }),
        None => Ok(()),
    }
}

/// Refuses everything but private anonymous memory that can be read and written.
fn check_memory(layout: &Layout) -> Result<(), AdoptError> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|source| AdoptError::System {
        what: "reading /proc/self/maps",
        source,
    })?;
    for run in layout.runs() {
        let span = layout.span(run);
        let mut covered = span.start();
        for line in maps.lines() {
            let Some((start, end)) = bounds(line) else {
                continue;
            };
            if end <= covered || start >= span.end() {
                continue;
            }
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let plain = fields.get(1) == Some(&"rw-p") && fields.get(4) == Some(&"0");
            if start > covered || !plain {
                break;
            }
            covered = end;
        }
        if covered < span.end() {
            let line = maps
                .lines()
                .find(|line| bounds(line).is_some_and(|(start, end)| (start..end).contains(&covered)));
            let found = line.map_or("not mapped".into(), |line| format!("mapped as \"{line}\""));
            return Err(AdoptError::WrongMemory { run, found });
        }
    }
    Ok(())
}

fn bounds(line: &str) -> Option<(usize, usize)> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some((
        usize::from_str_radix(start, 16).ok()?,
        usize::from_str_radix(end, 16).ok()?,
    ))
}

fn system(what: &'static str) -> impl Fn(rustix::io::Errno) -> AdoptError {
    move |errno| AdoptError::System {
        what,
        source: errno.into(),
    }
}
