//! The page table's own code under loom: every interleaving, with every value that weak memory allows, of the threads
//! that hand a page to each other.
//!
//! A page's bytes are a cell that loom watches: two owners at a time, or an owner that does not see what the one before
//! it did, fail the model. A guest that is never woken is a deadlock, which loom reports.
#![allow(unsafe_code)]
// UNSAFETY: loom's cells give out raw pointers; whether that is sound is what is tested.

#[path = "../../src/page.rs"]
#[allow(dead_code, unreachable_pub)]
mod page;
mod region;

use loom::cell::UnsafeCell;
use loom::sync::mpsc::{Receiver, Sender, channel};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use page::Gfn;
use region::atomic::Fences;
use region::run::PageRun;

use region::table::{self, Claim, Location, PageTable, Pinned, State, Waiters};

/// What the kernel knows about a page, under its own locks.
#[derive(Default)]
struct Kernel {
    present: bool,
    /// Writes wait, reads go on.
    protected: bool,
    /// A guest waits for the page itself, on the first userfaultfd.
    missing: bool,
    /// A guest waits to write, on the second one.
    write: bool,
}

/// A guest waits for page 0.
#[derive(Clone, Copy)]
struct Fault {
    protected: bool,
}

/// What an owner that fills a page leaves behind: a location.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Written(u32);

impl Location for Written {
    fn belongs_to(state: State) -> bool {
        state == State::Private
    }

    fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    fn bits(self) -> u32 {
        self.0
    }
}

struct World {
    table: PageTable,
    bytes: Vec<UnsafeCell<u64>>,
    kernel: Mutex<Kernel>,
    woken: Condvar,
}

impl World {
    /// `pages` pages in state `state`, all bytes 0.
    fn new(pages: u32, state: State) -> Arc<Self> {
        let table = PageTable::new(pages);
        // From `Huge`, which may become private, and on from there.
        let claim = table.found(PageRun::new(Gfn::new(0), pages));
        table.settle(claim, State::Private);
        let all = table.claim_run(PageRun::new(Gfn::new(0), pages), State::Private, Pinned::Ignore);
        table.settle(all.0.unwrap(), state);
        Arc::new(Self {
            table,
            bytes: (0..pages).map(|_| UnsafeCell::new(0)).collect(),
            kernel: Mutex::new(Kernel {
                present: state == State::Private || state == State::Shared,
                ..Kernel::default()
            }),
            woken: Condvar::new(),
        })
    }

    /// What only an owner may do.
    fn own(&self, claim: &Claim, change: impl Fn(u64) -> u64) {
        let pages = claim.run().pages();
        pages.for_each(|page| self.touch(page, &change));
    }

    fn touch(&self, page: Gfn, change: impl Fn(u64) -> u64) {
        // SAFETY: loom panics when another thread is in the cell or was and is not known to have left.
        self.bytes[page.get() as usize].with_mut(|bytes| unsafe { *bytes = change(*bytes) });
    }

    fn bytes(&self, page: u32) -> u64 {
        // SAFETY: as above.
        self.bytes[page as usize].with(|bytes| unsafe { *bytes })
    }

    fn claim_run(&self, run: PageRun, from: State, pinned: Pinned) -> Option<Claim> {
        table::claim_run(&self.table, self, run, from, pinned)
    }

    fn settle(&self, claim: Claim, to: State) {
        table::settle(&self.table, self, claim, to);
    }

    fn set_present(&self, present: bool) {
        self.kernel.lock().unwrap().present = present;
    }

    fn protect(&self, protected: bool) {
        self.kernel.lock().unwrap().protected = protected;
    }

    /// A guest's write to page 0: as long as it cannot be made, tells the handler and sleeps until it is woken.
    fn access(&self, faults: &Sender<Option<Fault>>) {
        let mut kernel = self.kernel.lock().unwrap();
        while !kernel.present || kernel.protected {
            let protected = kernel.present;
            *(if protected {
                &mut kernel.write
            } else {
                &mut kernel.missing
            }) = true;
            faults.send(Some(Fault { protected })).unwrap();
            while if protected { kernel.write } else { kernel.missing } {
                kernel = self.woken.wait(kernel).unwrap();
            }
        }
        faults.send(None).unwrap();
    }

    /// The fault handler, until the guest is done: page 0 comes back from `held`, and may be written to.
    fn handle(&self, faults: &Receiver<Option<Fault>>, held: State) {
        while let Some(Fault { protected }) = faults.recv().unwrap() {
            loop {
                match self.table.state(Gfn::new(0)) {
                    State::InTransit => break,
                    state if protected && state.is_pool() => {
                        let Some(claim) = self.table.claim(Gfn::new(0), state) else {
                            thread::yield_now();
                            continue;
                        };
                        self.protect(false);
                        self.settle(claim, state);
                    }
                    state if state == held => {
                        let Some(claim) = self.table.claim(Gfn::new(0), held) else {
                            thread::yield_now();
                            continue;
                        };
                        self.bring_back(claim);
                    }
                    _ => {
                        self.wake_missing(run(0, 1));
                        self.wake_protected(run(0, 1));
                    }
                }
                break;
            }
        }
    }

    fn bring_back(&self, claim: Claim) {
        self.own(&claim, |bytes| bytes + 1);
        self.set_present(true);
        self.settle(claim, State::Private);
    }
}

/// Every wake-up is one of the crate's own; a kernel wakes those that wait on the descriptor that it is asked for.
impl Waiters for World {
    fn wake_missing(&self, _: PageRun) {
        self.kernel.lock().unwrap().missing = false;
        self.woken.notify_all();
    }

    fn wake_protected(&self, _: PageRun) {
        self.kernel.lock().unwrap().write = false;
        self.woken.notify_all();
    }

    fn protects_merges(&self) -> bool {
        true
    }
}

fn run(first: u32, count: u32) -> PageRun {
    PageRun::new(Gfn::new(first), count)
}

/// Under both ways in which compilers make sequentially consistent accesses.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let model = std::sync::Arc::new(model);
    for fences in [Fences::Leading, Fences::Trailing] {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        let model = model.clone();
        builder.check(move || {
            // Threads of a model run on this one.
            region::atomic::place(fences);
            model();
        });
    }
}

#[test]
fn a_page_has_one_owner_at_a_time_who_sees_what_the_last_one_did() {
    explore(|| {
        let world = World::new(1, State::Private);
        let owners: Vec<_> = (0..2)
            .map(|_| {
                let world = world.clone();
                thread::spawn(move || {
                    let claim = world.table.claim(Gfn::new(0), State::Private)?;
                    world.own(&claim, |bytes| bytes + 1);
                    let written = Written(world.bytes(0) as u32);
                    world.table.set_location(&claim, Gfn::new(0), written);
                    world.table.settle(claim, State::Private);
                    Some(())
                })
            })
            .collect();
        let owned = owners
            .into_iter()
            .filter_map(|owner| owner.join().unwrap())
            .count();
        assert!(owned >= 1);
        assert_eq!(
            (world.bytes(0), world.table.located(Gfn::new(0))),
            (owned as u64, Some(Written(owned as u32)))
        );
    });
}

#[test]
fn runs_that_overlap_are_divided() {
    explore(|| {
        let world = World::new(2, State::Compressed);
        // The handler brings a page back with its neighbours while the engine brings back one of them.
        let other = world.clone();
        let handler = thread::spawn(move || {
            let claim = other.claim_run(run(0, 2), State::Compressed, Pinned::Ignore);
            let claim = claim?;
            let pages = claim.run().count;
            other.own(&claim, |bytes| bytes + 1);
            other.table.settle(claim, State::Private);
            Some(pages)
        });
        let claim = world.table.claim(Gfn::new(1), State::Compressed);
        let engine = claim.map_or(0, |claim| {
            world.own(&claim, |bytes| bytes + 1);
            world.table.settle(claim, State::Private);
            1
        });
        let handler = handler.join().unwrap().unwrap_or(0);
        assert_eq!(handler + engine, 2, "each page came back once");
        assert_eq!((world.bytes(0), world.bytes(1)), (1, 1));
        assert!(
            run(0, 2)
                .pages()
                .all(|page| world.table.state(page) == State::Private)
        );
    });
}

#[test]
fn a_guest_that_faults_while_the_engine_has_the_page_is_woken() {
    explore(|| {
        let world = World::new(1, State::Compressed);
        let (sender, faults) = channel();
        let guest = world.clone();
        let guest = thread::spawn(move || guest.access(&sender));
        let engine = world.clone();
        let engine = thread::spawn(move || {
            if let Some(claim) = engine.table.claim(Gfn::new(0), State::Compressed) {
                engine.bring_back(claim);
            }
        });
        world.handle(&faults, State::Compressed);
        guest.join().unwrap();
        engine.join().unwrap();
        assert_eq!(world.bytes(0), 1, "it came back once");
    });
}

#[test]
fn a_guest_that_faults_while_the_engine_takes_the_page_is_woken() {
    explore(|| {
        let world = World::new(1, State::Private);
        let (sender, faults) = channel();
        let guest = world.clone();
        let guest = thread::spawn(move || guest.access(&sender));
        let engine = world.clone();
        let engine = thread::spawn(move || {
            let claim = engine.claim_run(run(0, 1), State::Private, Pinned::Leave);
            let claim = claim.unwrap();
            engine.set_present(false);
            engine.own(&claim, |bytes| bytes + 1);
            engine.settle(claim, State::Compressed);
        });
        world.handle(&faults, State::Compressed);
        guest.join().unwrap();
        engine.join().unwrap();
    });
}

#[test]
fn a_page_released_while_the_swap_thread_reads_it_is_empty_in_the_end() {
    explore(|| {
        let world = World::new(1, State::Swapped);
        let (sender, claims) = channel::<Option<Claim>>();
        let swapper = world.clone();
        let swapper = thread::spawn(move || {
            while let Some(claim) = claims.recv().unwrap() {
                swapper.bring_back(claim);
            }
        });
        let releaser = world.clone();
        let releaser = thread::spawn(move || {
            loop {
                let state = releaser.table.state(Gfn::new(0));
                if let Some(claim) = releaser.table.claim(Gfn::new(0), state) {
                    releaser.own(&claim, |_| 0);
                    releaser.set_present(false);
                    return releaser.settle(claim, State::Empty);
                }
                thread::yield_now();
            }
        });
        // The handler.
        if let Some(claim) = world.table.claim(Gfn::new(0), State::Swapped) {
            sender.send(Some(claim)).unwrap();
        }
        sender.send(None).unwrap();
        swapper.join().unwrap();
        releaser.join().unwrap();
        assert_eq!(
            (world.table.state(Gfn::new(0)), world.bytes(0)),
            (State::Empty, 0)
        );
    });
}

#[test]
fn a_sampled_page_goes_back_once() {
    explore(|| {
        let world = World::new(1, State::Sampled);
        let other = world.clone();
        // The period ends.
        let engine = thread::spawn(move || {
            loop {
                match other.table.state(Gfn::new(0)) {
                    State::InTransit => thread::yield_now(),
                    State::Sampled => {
                        if let Some(claim) = other.table.claim(Gfn::new(0), State::Sampled) {
                            return other.bring_back(claim);
                        }
                    }
                    _ => return,
                }
            }
        });
        // The handler, at a touch.
        if let Some(claim) = world.table.claim(Gfn::new(0), State::Sampled) {
            world.bring_back(claim);
        }
        engine.join().unwrap();
        assert_eq!(
            (world.table.state(Gfn::new(0)), world.bytes(0)),
            (State::Private, 1)
        );
    });
}

#[test]
fn a_pinned_page_is_not_owned() {
    explore(|| {
        let world = World::new(1, State::Private);
        let engine = world.clone();
        let engine = thread::spawn(move || {
            let claim = engine.claim_run(run(0, 1), State::Private, Pinned::Leave);
            if let Some(claim) = claim {
                engine.own(&claim, |bytes| bytes + 1);
                engine.table.settle(claim, State::Private);
            }
        });
        // What `Pin` does.
        assert!(world.table.pin(Gfn::new(0)));
        while world.table.is_held(Gfn::new(0)) {
            thread::yield_now();
        }
        world.touch(Gfn::new(0), |bytes| bytes + 1);
        world.table.unpin(Gfn::new(0));
        engine.join().unwrap();
    });
}

#[test]
fn a_write_that_waits_while_a_pinned_page_is_tried_is_woken() {
    explore(|| {
        let world = World::new(1, State::Shared);
        // Growth is gated.
        world.protect(true);
        assert!(world.table.pin(Gfn::new(0)));
        let (sender, faults) = channel();
        let guest = world.clone();
        let guest = thread::spawn(move || guest.access(&sender));
        let engine = world.clone();
        let engine = thread::spawn(move || {
            let claim = engine.claim_run(run(0, 1), State::Shared, Pinned::Leave);
            assert!(claim.is_none(), "a pinned page was claimed");
        });
        world.handle(&faults, State::Shared);
        guest.join().unwrap();
        engine.join().unwrap();
    });
}

#[test]
fn a_write_that_waits_while_a_page_is_merged_behind_a_closed_gate_is_woken() {
    explore(|| {
        let world = World::new(1, State::Private);
        let (sender, faults) = channel();
        let guest = world.clone();
        let guest = thread::spawn(move || guest.access(&sender));
        let engine = world.clone();
        let engine = thread::spawn(move || {
            let claim = engine.claim_run(run(0, 1), State::Private, Pinned::Leave);
            engine.set_present(false);
            // Mapped, then protected, then settled: the writer may find any of these.
            engine.set_present(true);
            engine.protect(true);
            engine.settle(claim.unwrap(), State::Shared);
        });
        world.handle(&faults, State::Private);
        guest.join().unwrap();
        engine.join().unwrap();
    });
}

#[test]
fn a_write_that_waits_while_a_page_is_rehomed_is_woken() {
    explore(|| {
        let world = World::new(1, State::Shared);
        let (sender, faults) = channel();
        let guest = world.clone();
        let guest = thread::spawn(move || guest.access(&sender));
        let engine = world.clone();
        let engine = thread::spawn(move || {
            let claim = engine.claim_run(run(0, 1), State::Shared, Pinned::Leave);
            if let Some(claim) = claim {
                engine.protect(true);
                engine.own(&claim, |bytes| bytes + 1);
                engine.protect(false);
                engine.settle(claim, State::Private);
            }
        });
        world.handle(&faults, State::Private);
        guest.join().unwrap();
        engine.join().unwrap();
    });
}

#[test]
fn a_page_that_breaks_while_it_is_rehomed_comes_home() {
    explore(|| {
        let world = World::new(1, State::Shared);
        let scanner = world.clone();
        let scanner = thread::spawn(move || scanner.table.relabel(Gfn::new(0), State::Shared, State::Broken));
        loop {
            let state = world.table.state(Gfn::new(0));
            assert!(matches!(state, State::Shared | State::Broken), "{state:?}");
            if let Some(claim) = world.claim_run(run(0, 1), state, Pinned::Leave) {
                world.own(&claim, |bytes| bytes + 1);
                world.settle(claim, State::Private);
                break;
            }
            thread::yield_now();
        }
        scanner.join().unwrap();
        assert_eq!(
            (world.table.state(Gfn::new(0)), world.bytes(0)),
            (State::Private, 1)
        );
    });
}
