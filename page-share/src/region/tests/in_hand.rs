//! Pages that one thread has in hand while others want them, or that none may take in hand.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{merged, page, small_region};
use crate::region::engine::lock;
use crate::region::merge::PoolIndex;
use crate::region::scan::held_slots;
use crate::{
    AnonymousMemory, Domain, Gfn, LocalManager, Options, PAGE_SIZE, Page, PageRun, Region, Slot, State,
};

/// The references that `region` would name to a manager that is found again.
fn held(region: &Region) -> Vec<Slot> {
    held_slots(&region.guest, lock(&region.engine).merger().pools())
}

#[test]
fn a_page_that_the_fault_handler_has_in_hand_keeps_its_reference_when_the_manager_is_found_again() {
    let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
    let guests = merged(&manager, 100);
    let region = &guests[0].1;
    let all = held(region);
    assert_eq!(all.len(), 100);
    // What the handler does while it lets a write to a protected pool page through.
    let claim = region.guest.table().claim(Gfn::new(50), State::Shared).unwrap();
    std::thread::scope(|scope| {
        let naming = scope.spawn(|| held(region));
        std::thread::sleep(Duration::from_millis(50));
        region.guest.settle(claim, State::Shared);
        assert_eq!(naming.join().unwrap(), all);
    });
}

#[test]
fn whoever_writes_to_a_page_that_is_being_merged_behind_a_closed_gate_goes_on() {
    const PAGES: u32 = 64;
    let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
    let guests = merged(&manager, PAGES);
    let (memory, region) = &guests[0];
    region.close_gate();
    region.add_credit(1 << 30);
    let all = PageRun::new(Gfn::new(0), PAGES);
    let table = region.guest.table();
    let indices: Vec<PoolIndex> = all.pages().map(|page| table.last_location(page)).collect();
    let (stop, writes) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; 3]);
    let write = |own: &AtomicU64| {
        for at in (0..PAGES as usize).cycle() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            // The same as before: the page can be merged all the same.
            memory.store(at * PAGE_SIZE, memory.load(at * PAGE_SIZE));
            own.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        writes.iter().for_each(|own| drop(scope.spawn(|| write(own))));
        for round in 0..1000 {
            {
                let mut engine = lock(&region.engine);
                let merger = engine.merger();
                merger.rehome(all);
                merger.merge(all, &indices);
                merger.mover().clear();
                // What was re-homed is merged again, and what could not be merged is at the next round.
                merger.forget_references();
            }
            let before = writes.each_ref().map(|own| own.load(Ordering::Relaxed));
            let start = Instant::now();
            let goes_on = |(own, before): (&AtomicU64, &u64)| own.load(Ordering::Relaxed) > *before;
            while !writes.iter().zip(&before).all(goes_on) {
                let waited = start.elapsed() > Duration::from_secs(300);
                if waited {
                    stop.store(true, Ordering::Relaxed);
                    region.open_gate();
                }
                assert!(
                    !waited,
                    "round {round}: somebody still waits, {:?}",
                    region.growth()
                );
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(region.stats().pages_merged > u64::from(PAGES) * 2);
    (0..PAGES).for_each(|at| assert_eq!(memory.read_page(at), page(u64::from(at))));
}

/// The handler may have a page in hand and put it back where it was: that is not a touch.
#[test]
fn a_sampled_page_that_somebody_has_in_hand_for_a_moment_is_waited_for() {
    const PAGES: u32 = 16;
    let memory = AnonymousMemory::new(PAGES).unwrap();
    (0..PAGES).for_each(|at| memory.write_page(at, &page(u64::from(at))));
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
    (0..2).for_each(|_| region.scan_pass());
    for _ in 0..500 {
        let taken = region.start_sample(PAGES);
        assert!(taken > 0);
        let (begun, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        let sample = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    for page in region.guest.table().all().pages() {
                        if let Some(claim) = region.guest.table().claim(page, State::Sampled) {
                            region.guest.settle(claim, State::Sampled);
                        }
                    }
                    begun.store(true, Ordering::Relaxed);
                }
            });
            while !begun.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            let sample = region.finish_sample();
            ended.store(true, Ordering::Relaxed);
            sample
        });
        assert_eq!((sample.taken, sample.touched), (taken, 0));
        let mut pages = region.guest.table().all().pages();
        let left = pages.find(|&page| region.state(page) == State::Sampled);
        assert_eq!(left, None, "it would be lost with the next sample");
    }
    (0..PAGES).for_each(|at| assert_eq!(memory.read_page(at), page(u64::from(at))));
}

/// A page that is swapped besides the first 16; none reads it.
const SWAPPED_TOO: u32 = 40;

fn swapping_region() -> (AnonymousMemory, Region) {
    let swap = crate::Swap::create(&std::env::temp_dir(), 1024).unwrap();
    small_region(Options {
        swap: Some(swap),
        ..Options::default()
    })
}

#[test]
fn a_full_swap_file_takes_one_page_for_each_that_came_back_however_many_are_offered() {
    let swap = crate::Swap::create(&std::env::temp_dir(), 20).unwrap();
    let (memory, region) = small_region(Options {
        swap: Some(swap),
        ..Options::default()
    });
    let offer = |first| region.swap_out(PageRun::new(Gfn::new(first), 16));
    assert_eq!(offer(0).unwrap(), 16);
    assert!(offer(16).is_err());
    assert_eq!(region.stats().swapped, 20);
    // Pages that have never been together in the file come back, and as many others go.
    assert_eq!(region.bring_back(PageRun::new(Gfn::new(3), 1)), 1);
    assert_eq!(region.bring_back(PageRun::new(Gfn::new(9), 2)), 2);
    assert!(offer(32).is_err());
    assert_eq!(region.stats().swapped, 20);
    assert!(offer(48).is_err(), "no page came back");
    assert_eq!((region.stats().swapped, region.stats().pages_lost), (20, 0));
    (0..1024).for_each(|at| assert_eq!(memory.read_page(at), page(u64::from(at))));
}

/// What [`Region::peek`] shows of `run`.
fn looked_at(region: &Region, run: PageRun) -> Vec<Page> {
    let mut seen = Vec::new();
    region.peek(run, |_, _, bytes| seen.extend(bytes.copied()));
    seen
}

#[test]
fn figures_credit_and_the_gate_do_not_wait_for_the_disk() {
    let (memory, region) = swapping_region();
    assert_eq!(region.swap_out(PageRun::new(Gfn::new(0), 16)).unwrap(), 16);
    assert_eq!(
        region.swap_out(PageRun::new(Gfn::new(SWAPPED_TOO), 1)).unwrap(),
        1
    );
    // Held as by a thread that waits for the disk.
    let stalled = region.cold.swap();
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(memory.read_page(3), page(3)));
        let start = Instant::now();
        while !(0..16).all(|at| region.state(Gfn::new(at)) == State::InTransit) {
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
        let (done, ended) = std::sync::mpsc::channel();
        let region = &region;
        scope.spawn(move || {
            region.stats();
            region.close_gate();
            region.set_credit(1, 0);
            region.open_gate();
            region.start_sample(4);
            region.finish_sample();
            held(region);
            done.send(()).unwrap();
        });
        let in_time = ended.recv_timeout(Duration::from_secs(20));
        // A page in other hands, and one that is on the disk.
        let looking = scope.spawn(|| looked_at(region, PageRun::new(Gfn::new(7), 1)));
        let reading = scope.spawn(|| looked_at(region, PageRun::new(Gfn::new(SWAPPED_TOO), 1)));
        let releasing = scope.spawn(|| region.release(PageRun::new(Gfn::new(5), 1), crate::Release::Report));
        std::thread::sleep(Duration::from_millis(50));
        let free = (0..100).any(|_| region.engine.try_lock().is_ok());
        let waits = [
            looking.is_finished(),
            reading.is_finished(),
            releasing.is_finished(),
        ];
        drop(stalled);
        assert_eq!(looking.join().unwrap(), [page(7)]);
        assert_eq!(reading.join().unwrap(), [page(u64::from(SWAPPED_TOO))]);
        assert_eq!(releasing.join().unwrap(), 1);
        assert!(in_time.is_ok(), "the engine waited for the disk");
        assert!(
            waits == [false; 3] && free,
            "the engine was held while a page was being read"
        );
    });
    assert_eq!(memory.read_page(5), [0; PAGE_SIZE]);
}

/// One page for the access that waited before the gate was closed, and none for its neighbours.
#[test]
fn neighbours_that_are_being_read_as_the_gate_closes_stay_in_the_swap_file() {
    let (memory, region) = swapping_region();
    assert_eq!(region.swap_out(PageRun::new(Gfn::new(0), 16)).unwrap(), 16);
    let neighbours: Vec<u32> = (0..16).filter(|&at| at != 3).collect();
    let stalled = region.cold.swap();
    let own = std::thread::scope(|scope| {
        let (memory, region) = (&memory, &region);
        let touching = scope.spawn(|| memory.read_page(3));
        while !(0..16).all(|at| region.guest.table().is_being_read(Gfn::new(at))) {
            std::thread::yield_now();
        }
        // One more waits for a page that is being read, and then for credit.
        let waiting = scope.spawn(|| memory.read_page(7));
        region.close_gate();
        drop(stalled);
        let touched = touching.join().unwrap();
        let start = Instant::now();
        while region.growth().waiting == 0 && start.elapsed() < Duration::from_secs(60) {
            std::thread::yield_now();
        }
        let states: Vec<State> = neighbours.iter().map(|&at| region.state(Gfn::new(at))).collect();
        let (growth, swapped_in) = (region.growth(), region.stats().pages_swapped_in);
        let seen = looked_at(region, PageRun::new(Gfn::new(0), 16));
        region.open_gate();
        assert_eq!(touched, page(3));
        assert_eq!(waiting.join().unwrap(), page(7));
        assert_eq!(states, [State::Swapped; 15]);
        assert_eq!((growth.waiting, growth.grown, swapped_in), (1, 0, 1));
        assert_eq!(seen, (0..16).map(page).collect::<Vec<_>>());
        region.state(Gfn::new(3))
    });
    assert_eq!(own, State::Private);
    (0..64).for_each(|at| assert_eq!(memory.read_page(at), page(u64::from(at))));
    assert_eq!(region.stats().swapped, 0);
}

#[test]
fn a_page_that_is_excluded_stays_when_its_neighbours_are_taken() {
    let (memory, region) = swapping_region();
    region.exclude(PageRun::new(Gfn::new(20), 1));
    assert_eq!(region.swap_out(PageRun::new(Gfn::new(10), 20)).unwrap(), 19);
    assert_eq!(region.state(Gfn::new(20)), State::Private);
    (0..64).for_each(|at| assert_eq!(memory.read_page(at), page(u64::from(at))));
}

#[test]
fn a_pool_is_kept_while_the_fault_handler_has_its_last_page_in_hand() {
    let managers = [(); 2].map(|()| LocalManager::new(Domain::new(1 << 10).unwrap()));
    let guests = merged(&managers[0], 16);
    let (memory, region) = &guests[0];
    let port = managers[1].attach(region.page_limit()).unwrap();
    region.connect(Box::new(port)).unwrap();
    // A device has one page, which therefore stays in the pool of the manager that is gone. All others come home.
    let last = Gfn::new(7);
    let pin = region.pin(PageRun::new(last, 1)).unwrap();
    region.scan_pass();
    assert_eq!(region.stats().shared, 1);
    let ended = AtomicBool::new(false);
    let kept = std::thread::scope(|scope| {
        // What the handler does while it lets writes to a protected pool page through.
        scope.spawn(|| {
            let table = region.guest.table();
            while !ended.load(Ordering::Relaxed) {
                if let Some(claim) = table.claim(last, State::Shared) {
                    table.settle(claim, State::Shared);
                }
            }
        });
        let (scanner, mut engine) = (region.scanner(), lock(&region.engine));
        let kept = (0..2_000_000).all(|_| {
            scanner.forget_old_pools(engine.merger());
            engine.merger().pools().has_old()
        });
        ended.store(true, Ordering::Relaxed);
        kept
    });
    assert!(kept, "the pool was let go of under a page that is mapped from it");
    drop(pin);
    assert_eq!(region.unshare_all(), 1);
    assert_eq!(memory.read_page(last.get()), page(u64::from(last.get())));
    region.scan_pass();
    assert_eq!(region.pools().len(), 1);
}

#[test]
fn a_page_that_is_peeked_at_on_a_disk_that_does_not_answer_keeps_none_from_the_engine() {
    let (memory, region) = swapping_region();
    assert_eq!(region.swap_out(PageRun::new(Gfn::new(0), 16)).unwrap(), 16);
    let run = PageRun::new(Gfn::new(7), 1);
    let stalled = region.cold.swap();
    std::thread::scope(|scope| {
        let region = &region;
        let looking = scope.spawn(move || looked_at(region, run));
        while region.state(run.first) != State::InTransit {
            std::thread::yield_now();
        }
        let (done, ended) = std::sync::mpsc::channel();
        scope.spawn(move || {
            region.close_gate();
            held(region);
            region.open_gate();
            done.send(()).unwrap();
        });
        let in_time = ended.recv_timeout(Duration::from_secs(20));
        let releasing = scope.spawn(move || region.release(run, crate::Release::Report));
        std::thread::sleep(Duration::from_millis(50));
        let free = (0..100).any(|_| region.engine.try_lock().is_ok());
        drop(stalled);
        assert_eq!(looking.join().unwrap(), [page(7)]);
        assert_eq!(releasing.join().unwrap(), 1);
        assert!(in_time.is_ok() && free, "the engine waited for the disk");
    });
    assert_eq!(memory.read_page(7), [0; PAGE_SIZE]);
}
