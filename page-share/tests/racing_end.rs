//! A region ends while its guest writes: to merged pages, to compressed ones, to pages in the swap file and to pages
//! that wait behind a closed gate.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use page_share::{
    AnonymousMemory, Domain, Gfn, LocalManager, Options, PAGE_SIZE, Page, PageRun, Region, Swap,
};

const PAGES: u32 = 256;

/// What happens to the pages of a guest; the first part is merged.
const COMPRESSED: std::ops::Range<u32> = 128..192;
const SWAPPED: std::ops::Range<u32> = 192..256;

const WRITERS: u32 = 2;

/// Ends of regions.
const ROUNDS: u64 = 60;

/// Those of the first part come in equal pairs, of which two writers have one each. The first word counts visits.
fn content(at: u32) -> Page {
    let equal_to = if at < COMPRESSED.start { at / WRITERS } else { at };
    std::array::from_fn(|byte| match byte {
        0..8 => 0,
        8 => equal_to as u8,
        _ => (equal_to + byte as u32 / 64) as u8,
    })
}

fn guest(manager: &LocalManager) -> (AnonymousMemory, Region) {
    let memory = AnonymousMemory::new(PAGES).unwrap();
    (0..PAGES).for_each(|at| memory.write_page(at, &content(at)));
    let options = Options::default()
        .with_swap(Swap::create(&std::env::temp_dir(), PAGES).unwrap())
        .with_store_bytes(1 << 20);
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
    region
        .connect(Box::new(manager.attach(region.page_limit()).unwrap()))
        .unwrap();
    (memory, region)
}

/// Pages of every kind; the gate is closed.
fn settle(region: &Region) {
    (0..3).for_each(|_| {
        region.scan_pass();
    });
    let run = |pages: std::ops::Range<u32>| PageRun::new(Gfn::new(pages.start), pages.len() as u32);
    region.compress(run(COMPRESSED));
    region.swap_out(run(SWAPPED)).unwrap();
    region.close_gate();
}

/// Counts in the writer's pages until `done`, and returns what each of them must hold.
fn write(memory: &AnonymousMemory, writer: u32, visits: &AtomicU64, done: &AtomicBool) -> Vec<(u32, u64)> {
    let mut pages: Vec<_> = (writer..PAGES)
        .step_by(WRITERS as usize)
        .map(|at| (at, 0))
        .collect();
    // From both ends, so that the writers are at different kinds of pages.
    if writer % 2 == 1 {
        pages.reverse();
    }
    while !done.load(Ordering::Relaxed) {
        for (at, count) in &mut pages {
            let offset = *at as usize * PAGE_SIZE;
            assert_eq!(memory.load(offset), *count, "page {at}");
            *count += 1;
            memory.store(offset, *count);
            visits.fetch_add(1, Ordering::Relaxed);
        }
    }
    pages
}

fn check(memory: &AnonymousMemory, counts: &[(u32, u64)]) {
    for &(at, count) in counts {
        let mut expected = content(at);
        expected[..8].copy_from_slice(&count.to_ne_bytes());
        assert!(memory.read_page(at) == expected, "page {at}");
    }
}

#[test]
fn no_write_is_lost_or_invented_when_a_region_ends_below_its_writers() {
    let manager = LocalManager::new(Domain::new(4 * PAGES).unwrap());
    for round in 0..ROUNDS {
        let (memory, region) = guest(&manager);
        settle(&region);
        let kinds = region.stats();
        assert!(kinds.shared * kinds.compressed * kinds.swapped > 0, "{kinds:?}");
        let (visits, done) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    scope.spawn({
                        let (memory, visits, done) = (&memory, &visits, &done);
                        move || write(memory, writer, visits, done)
                    })
                })
                .collect();
            // Later in each round, so that ends meet every kind of page.
            std::thread::sleep(Duration::from_micros(round * 20));
            drop(region);
            let so_far = visits.load(Ordering::Relaxed);
            let start = Instant::now();
            while visits.load(Ordering::Relaxed) < so_far + 4 * u64::from(PAGES) {
                assert!(
                    start.elapsed() < Duration::from_secs(300),
                    "the writers wait for ever"
                );
                std::thread::sleep(Duration::from_millis(1));
            }
            done.store(true, Ordering::Relaxed);
            for writer in writers {
                check(&memory, &writer.join().unwrap());
            }
        });
        manager.with(|domain| domain.check().unwrap());
    }
}
