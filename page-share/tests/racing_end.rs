//! A region ends while its guest writes: to merged pages, to compressed ones, to pages in the swap file and to pages
//! that wait behind a closed gate.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
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

/// What the test and its writers have in common. The writers own it: where one is never woken, the test fails all the
/// same and leaves it behind.
#[derive(Default)]
struct Race {
    /// Pages written so far, by each writer.
    visits: [AtomicU64; WRITERS as usize],
    done: AtomicBool,
}

impl Race {
    /// Waits until each writer has visited all its pages a few times more.
    fn go_on(&self) {
        let visits = || {
            self.visits
                .each_ref()
                .map(|visits| visits.load(Ordering::Relaxed))
        };
        let so_far = visits();
        let all = || {
            let pairs = visits().into_iter().zip(so_far);
            pairs
                .into_iter()
                .all(|(now, then)| now >= then + 4 * u64::from(PAGES / WRITERS))
        };
        wait("a writer waits for ever", all);
    }
}

/// Waits until `happens`; no machine is so busy that it takes longer than five minutes.
fn wait(otherwise: &str, happens: impl Fn() -> bool) {
    let start = Instant::now();
    while !happens() {
        assert!(start.elapsed() < Duration::from_secs(300), "{otherwise}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Counts in the writer's pages until all is done, and returns what each of them must hold.
fn write(memory: &AnonymousMemory, writer: u32, race: &Race) -> Vec<(u32, u64)> {
    let mut pages: Vec<_> = (writer..PAGES)
        .step_by(WRITERS as usize)
        .map(|at| (at, 0))
        .collect();
    // From both ends, so that the writers are at different kinds of pages.
    if writer % 2 == 1 {
        pages.reverse();
    }
    while !race.done.load(Ordering::Relaxed) {
        for (at, count) in &mut pages {
            let offset = *at as usize * PAGE_SIZE;
            assert_eq!(memory.load(offset), *count, "page {at}");
            *count += 1;
            memory.store(offset, *count);
            race.visits[writer as usize].fetch_add(1, Ordering::Relaxed);
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
        let (memory, race) = (Arc::new(memory), Arc::new(Race::default()));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (memory, race) = (memory.clone(), race.clone());
                thread::spawn(move || write(&memory, writer, &race))
            })
            .collect();
        // Later in each round, so that ends meet every kind of page.
        thread::sleep(Duration::from_micros(round * 20));
        drop(region);
        race.go_on();
        race.done.store(true, Ordering::Relaxed);
        for writer in writers {
            wait("a writer does not end", || writer.is_finished());
            check(&memory, &writer.join().unwrap());
        }
        manager.with(|domain| domain.check().unwrap());
    }
}
