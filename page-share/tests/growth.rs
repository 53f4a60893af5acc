//! A guest whose growth is gated grows by its credit and not by a page more, whatever its threads touch.

mod contents;
mod smaps;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use contents::page;
use page_share::{AnonymousMemory, Domain, Gfn, LocalManager, Options, PAGE_SIZE, PageRun, Region, Swap};
use smaps::smaps;

const PAGES: u32 = 4096;

/// What the threads write to: each class of pages that could grow, and pages that have grown already.
const CLASSES: [(&str, std::ops::Range<u32>); 6] = [
    ("shared", 0..1024),
    ("zero", 1024..2048),
    ("empty", 2048..2560),
    ("compressed", 2560..3072),
    ("swapped", 3072..3584),
    ("private", 3584..4096),
];

/// Threads for each class.
const THREADS: u32 = 3;

/// Threads that wait once no page of their class is left that grew before.
const WAITING: u64 = 5 * THREADS as u64;

/// Waits until `done`, if that ever comes about: what then must hold is asserted by who waits.
fn soon(done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Pages of `memory` that are memory of its own.
fn anonymous(memory: &AnonymousMemory) -> u64 {
    let range = memory.address()..memory.address() + PAGES as usize * PAGE_SIZE;
    smaps(range).anonymous / PAGE_SIZE as u64
}

/// A guest with pages of every class.
fn guest(manager: &LocalManager) -> (AnonymousMemory, Region) {
    let memory = AnonymousMemory::new(PAGES).unwrap();
    (0..1024).for_each(|at| memory.write_page(at, &page(u64::from(at / 2))));
    // Some were only ever read: the kernel's zero page, too, but no scan has seen that it is.
    (1024..1536).for_each(|at| assert_eq!(memory.load(at as usize * PAGE_SIZE), 0));
    (1536..2048).for_each(|at| memory.write_page(at, &[0; PAGE_SIZE]));
    (2560..4096).for_each(|at| memory.write_page(at, &page(u64::from(at))));
    let options = Options::default()
        .with_store_bytes(8 << 20)
        .with_swap(Swap::create(&std::env::temp_dir(), PAGES).unwrap());
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
    region.connect(Box::new(manager.attach(PAGES).unwrap())).unwrap();
    (0..3).for_each(|_| region.scan_pass());
    assert_eq!(region.compress(PageRun::new(Gfn::new(2560), 512)), 512);
    assert_eq!(region.swap_out(PageRun::new(Gfn::new(3072), 512)).unwrap(), 512);
    assert_eq!(region.stats().shared, 1024);
    (memory, region)
}

#[test]
fn a_gated_guest_grows_by_its_credit_and_no_more() {
    const CREDIT: u32 = 100;
    let manager = LocalManager::new(Domain::new(1 << 16).unwrap());
    for round in 0..5u32 {
        let (memory, region) = guest(&manager);
        let (stop, closed) = (AtomicBool::new(false), AtomicBool::new(false));
        let write = |class: &std::ops::Range<u32>, seed: u32, thread: u32| {
            let mut random = seed;
            while !stop.load(Ordering::Relaxed) {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Race with the closing in one half; the other is as it was when the gate is closed, for all to wait at.
                let pages = match closed.load(Ordering::Relaxed) {
                    true => class.end - class.start,
                    false => (class.end - class.start) / 2,
                };
                // A page of the thread's own: two that wait for one page would count as one.
                let at = class.start + (random >> 8) % (pages / THREADS) * THREADS + thread;
                memory.store(at as usize * PAGE_SIZE + 8, u64::from(random) | 1);
                std::thread::sleep(Duration::from_micros(100));
            }
        };
        let grown = std::thread::scope(|scope| {
            for (number, (_, class)) in CLASSES.iter().enumerate() {
                for thread in 0..THREADS {
                    let write = &write;
                    scope.spawn(move || write(class, round * 100 + number as u32 * 10 + thread, thread));
                }
            }
            std::thread::sleep(Duration::from_millis(10));
            region.close_gate();
            let before = anonymous(&memory);
            closed.store(true, Ordering::Relaxed);
            // All threads but those that write to pages that have grown already.
            soon(|| region.growth().waiting == WAITING);
            let kept = anonymous(&memory);
            region.scan_pass();
            let waiting = region.growth().waiting;
            region.set_credit(CREDIT, region.growth().grown);
            soon(|| region.growth().credit == 0 && region.growth().waiting == WAITING);
            let credited = anonymous(&memory);
            let growth = region.growth();
            stop.store(true, Ordering::Relaxed);
            region.open_gate();
            (
                kept.saturating_sub(before),
                credited.saturating_sub(kept),
                waiting,
                growth,
            )
        });
        let (without, with, waiting, growth) = grown;
        let what = format!("round {round}: {without} pages without credit, {with} with {CREDIT}, {growth:?}");
        // One access of each thread may have been let through while the gate was being closed.
        assert!(without <= 18, "{what}");
        assert_eq!(waiting, WAITING, "{what}");
        assert!(with <= u64::from(CREDIT) && with > 0, "{what}");
        assert_eq!(growth.credit, 0, "{what}");
        println!("{what}");
    }
}
