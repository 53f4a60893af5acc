//! Adopting a guest's memory: what is refused, and the first look at it.

use std::sync::{Arc, Mutex};

use crate::page::Gfn;
use crate::region::engine::Engine;
use crate::region::error::AdoptError;
use crate::region::faults::{Handler, Sources, SwapThread};
use crate::region::guest::{Guest, MemoryRange, system};
use crate::region::kernel::{HUGE_PAGES, Mappings};
use crate::region::options::{Blocks, Options, ThreadStarted};
use crate::region::random::Random;
use crate::region::reclaim::{ColdStore, SampleArea, Store};
use crate::region::run::PageRun;
use crate::region::scan::{Priorities, Scanner};
use crate::region::table::State;
use crate::region::{PATIENCE, Region};

impl Region {
    /// Takes over a guest's memory. The guest may be running already.
    ///
    /// Nothing changes for the guest: what is there stays, what is not reads zero. The memory is not copied at a fork
    /// and not in a core dump from now on.
    ///
    /// # Errors
    /// See [`AdoptError`]; nothing has changed then, except perhaps those flags.
    pub fn adopt(ranges: Vec<MemoryRange>, options: Options) -> Result<Self, AdoptError> {
        let guest = Arc::new(Guest::new(ranges, options.blocks)?);
        let store = Store::new(options.store_bytes).map_err(|source| AdoptError::System {
            what: "reserving address space for compressed pages",
            source,
        })?;
        let area = SampleArea::new(guest.clone())?.into();
        let cold = ColdStore::new(guest.clone(), store, options.swap).into();
        Self::start(
            Sources { guest, cold, area },
            options.blocks,
            options.thread_started,
        )
    }

    fn start(sources: Sources, blocks: Blocks, started: ThreadStarted) -> Result<Self, AdoptError> {
        let io = |what| move |source| AdoptError::System { what, source };
        let Sources { guest, cold, area } = sources.clone();
        let engine = Engine::new(guest.clone(), cold.clone(), area.clone());
        let engine = engine.map_err(io("setting up the engine"))?;
        let scanner = Scanner::new(guest.clone()).map_err(io("drawing random numbers"))?;
        let random = Random::new().map_err(io("drawing random numbers"))?;
        // Before there are threads: should it fail, the descriptor closes and nothing watches any more. A thread that touches a
        // missing page meanwhile waits for the handler.
        take_over(&guest, blocks)?;
        let (mut swap_thread, swap_ins) = SwapThread::start(guest.clone(), cold.clone(), started)
            .map_err(io("starting the swap thread"))?;
        // Without a sender the swap thread ends, and it must know why.
        let kept_for_failure = swap_ins.clone();
        let handler = Handler::start(sources, swap_ins, started).map_err(|source| {
            guest.set_closing(true);
            drop(kept_for_failure);
            swap_thread.stop();
            io("starting the fault handler")(source)
        })?;
        let mappings = Mappings::of_process();
        mappings.count_region(1);
        mappings.recount();
        Ok(Self {
            guest,
            cold,
            area,
            engine: Mutex::new(engine),
            scanner: Mutex::new(scanner),
            random,
            priorities: Priorities::default(),
            handler,
            swap_thread,
            patience: PATIENCE,
            thread_started: started,
        })
    }
}

/// Finds out what every page is, and watches those that are managed from the start.
fn take_over(guest: &Guest, blocks: Blocks) -> Result<(), AdoptError> {
    for run in guest.layout().runs() {
        for (part, huge) in blocks_of(run, blocks) {
            let claim = guest.table().found(part);
            if huge {
                // Advice about huge pages is a wish: without it the block is merely unwatched.
                let _ = guest.span(part).flag_huge();
                guest.settle(claim, State::Huge);
            } else if let Err(refused) = guest.manage(claim) {
                let error = refused.leave_unwatched(guest);
                return Err(system("watching guest memory")(error));
            }
        }
    }
    Ok(())
}

/// The parts of a range and whether each is whole huge blocks.
fn blocks_of(run: PageRun, blocks: Blocks) -> Vec<(PageRun, bool)> {
    if blocks == Blocks::Managed {
        return vec![(run, false)];
    }
    let end = run.end().get();
    let start = run.first.get().next_multiple_of(HUGE_PAGES).min(end);
    let last = (end / HUGE_PAGES * HUGE_PAGES).max(start);
    let (start, last) = (Gfn::new(start), Gfn::new(last));
    let parts = [
        (PageRun::between(run.first, start), false),
        (PageRun::between(start, last), true),
        (run.rest(last), false),
    ];
    parts.into_iter().filter(|(part, _)| part.count > 0).collect()
}
