//! Writers race with everything that the engine does; no write may be lost and none invented.
//!
//! Each page belongs to one writer, which knows every word that the page must hold. Every write goes to some word, which is
//! checked first; now and then a page goes back to its pristine content, so that it can be merged again. Merges, re-homes,
//! samples, compression and swap run all the while.

mod contents;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use contents::{WORDS, Written, noise, word};
use page_share::{
    AnonymousMemory, Domain, Gfn, LocalManager, Options, PAGE_SIZE, PageRun, Region, Swap, SwapError,
    SwapOutError,
};

const GUESTS: usize = 2;
const PAGES: u32 = 6 * 1024;
const WRITERS: usize = 4;
/// Writes to a page at each visit.
const BURST: u64 = 32;
/// Words of a page that differ from its pristine content before it goes back to it.
const MOST_WRITTEN: usize = 64;
/// Different pristine contents; pages of one content are equal everywhere.
const CONTENTS: u64 = 500;

/// The word at `index` of a page that is pristine. A sixteenth of the contents is all zeros, a half compresses well; the
/// others differ in a word or two.
fn fixed(page: u32, index: usize) -> u64 {
    let content = u64::from(page) / 4 % CONTENTS;
    match content {
        _ if content.is_multiple_of(16) => 0,
        _ if content / 2 % 2 == 1 => word(content, index),
        _ => noise(content, index),
    }
}

fn fill(memory: &AnonymousMemory) {
    for page in 0..PAGES {
        memory.write_page(page, &contents::page_of(|index| fixed(page, index)));
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A word of a page.
    fn word(&mut self) -> usize {
        (self.next() >> 20) as usize % WORDS
    }
}

/// A page of a writer's, and what was written to it.
struct Own {
    guest: usize,
    page: u32,
    written: Written,
}

impl Own {
    fn expected(&self, index: usize) -> u64 {
        self.written.expected(index, fixed(self.page, index))
    }

    fn check(&self, memories: &[AnonymousMemory], index: usize, when: &str) {
        let (guest, page) = (self.guest, self.page);
        assert_eq!(
            memories[guest].load(page as usize * PAGE_SIZE + index * 8),
            self.expected(index),
            "guest {guest} page {page:#x} word {index}: a write was lost or invented {when}"
        );
    }

    fn write(&mut self, memories: &[AnonymousMemory], index: usize, value: u64) {
        self.check(memories, index, "before a write");
        self.written.set(index, value);
        memories[self.guest].store(self.page as usize * PAGE_SIZE + index * 8, value);
    }

    fn undo(&mut self, memories: &[AnonymousMemory]) {
        for index in self.written.undo() {
            let at = self.page as usize * PAGE_SIZE + index * 8;
            memories[self.guest].store(at, fixed(self.page, index));
        }
    }
}

/// How far a race is.
#[derive(Default)]
struct Race {
    /// Writes that all writers make.
    writes_wanted: u64,
    /// Runs that a full swap file takes in part before the race is over.
    parts_wanted: u64,
    writes: AtomicU64,
    parts: AtomicU64,
    longest_visit_us: AtomicU64,
    stop: AtomicBool,
}

impl Race {
    fn is_over(&self) -> bool {
        let is_enough = |count: &AtomicU64, wanted| count.load(Ordering::Relaxed) >= wanted;
        let is_done =
            is_enough(&self.writes, self.writes_wanted) && is_enough(&self.parts, self.parts_wanted);
        is_done || self.stop.load(Ordering::Relaxed)
    }
}

/// Ends the race when it goes, also because its thread panicked: the others would wait for ever.
struct Ends<'a>(&'a Race);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// Writes until the race is over; returns what its pages must hold.
fn write(id: usize, memories: &[AnonymousMemory], race: &Race) -> Vec<Own> {
    let _ends = Ends(race);
    let mut random = Random(0x1234_5678 + id as u64 * 7919);
    let pages = |guest: usize| {
        (0..PAGES)
            .skip(id)
            .step_by(WRITERS)
            .map(move |page| (guest, page))
    };
    let mut own: Vec<Own> = (0..GUESTS)
        .flat_map(pages)
        .map(|(guest, page)| Own {
            guest,
            page,
            written: Written::default(),
        })
        .collect();
    while !race.is_over() {
        let at = (random.next() % own.len() as u64) as usize;
        let own = &mut own[at];
        let since = Instant::now();
        own.check(memories, random.word(), "long ago");
        for _ in 0..BURST {
            let (index, value) = (random.word(), random.next());
            own.write(memories, index, value);
        }
        if random.next().is_multiple_of(2) || own.written.count() > MOST_WRITTEN {
            own.undo(memories);
        }
        let visit = since.elapsed().as_micros() as u64;
        race.longest_visit_us.fetch_max(visit, Ordering::Relaxed);
        race.writes.fetch_add(BURST, Ordering::Relaxed);
        if random.next().is_multiple_of(16) {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    own
}

/// Swaps a run out, which a full file takes in part or not at all. Returns whether it took a part.
fn swap_out(region: &Region, run: PageRun) -> bool {
    let before = region.stats().pages_swapped_out;
    match region.swap_out(run) {
        Ok(_) => false,
        Err(SwapOutError::Swap(SwapError::Full { .. })) => region.stats().pages_swapped_out > before,
        Err(error) => panic!("{error}"),
    }
}

/// Everything an engine can do to a page, over and over.
fn disturb(region: &Region, race: &Race, seed: u64) {
    let _ends = Ends(race);
    let mut random = Random(seed);
    let swap_out = |run| {
        race.parts
            .fetch_add(u64::from(swap_out(region, run)), Ordering::Relaxed)
    };
    while !race.stop.load(Ordering::Relaxed) {
        region.scan_pass();
        region.finish_sample();
        region.start_sample(200);
        for run in region.cold_pages(300) {
            match random.next() % 3 {
                0 => drop(region.compress(run)),
                1 => drop(swap_out(run)),
                _ => {}
            }
        }
        // Whole stretches, so that there are neighbours to bring back.
        let first = (random.next() % u64::from(PAGES)) as u32;
        region.compress(PageRun::new(Gfn::new(first), 64));
        let first = (random.next() % u64::from(PAGES)) as u32;
        swap_out(PageRun::new(Gfn::new(first), 64));
        let first = (random.next() % u64::from(PAGES)) as u32;
        match random.next() % 16 {
            0 => drop(region.unshare_all()),
            1 => drop(region.bring_back(PageRun::new(Gfn::new(first), 500))),
            2 => drop(region.pin(PageRun::new(Gfn::new(first), 1))),
            3 => {
                region.close_gate();
                region.add_credit(10);
                std::thread::sleep(Duration::from_millis(1));
                region.open_gate();
            }
            4 => region.prioritize(PageRun::new(Gfn::new(first), 100)),
            5..8 => drop(region.rehome_broken(200)),
            _ => {}
        }
    }
}

/// The race must really have happened.
fn assert_it_happened(region: &Region) {
    let stats = region.stats();
    println!("{stats:#?}");
    for (what, count) in [
        ("merged", stats.pages_merged),
        ("broken", stats.cow_breaks),
        ("re-homed", stats.pages_rehomed),
        ("zeroed", stats.pages_zeroed),
        ("sampled and touched", stats.samples_touched),
        ("decompressed", stats.pages_decompressed),
        ("decompressed as neighbours", stats.neighbours_decompressed),
        ("swapped in", stats.pages_swapped_in),
        ("swapped in as neighbours", stats.neighbours_swapped_in),
    ] {
        assert!(count > 50, "only {count} pages were {what}");
    }
    assert_eq!(stats.pages_lost, 0);
}

/// No slot is lost, and none has two pages: a file that is offered more than it can take has a page in each.
fn assert_full(region: &Region, swap_pages: u32) {
    let offered = region.swap_out(PageRun::new(Gfn::new(0), PAGES));
    assert!(
        matches!(offered, Err(SwapOutError::Swap(SwapError::Full { .. }))),
        "{offered:?}"
    );
    assert_eq!(region.stats().swapped, u64::from(swap_pages));
}

/// Holds `race` with swap files of at most `swap_pages` pages.
fn run(race: &Race, swap_pages: u32) {
    let manager = LocalManager::new(Domain::new(1 << 20).unwrap());
    let directory = tempfile::tempdir().unwrap();
    let memories: Vec<_> = (0..GUESTS)
        .map(|_| AnonymousMemory::new(PAGES).unwrap())
        .collect();
    memories.iter().for_each(fill);
    let regions: Vec<_> = memories
        .iter()
        .map(|memory| {
            let swap = Some(Swap::create(directory.path(), swap_pages).unwrap());
            let options = Options::default().with_store_bytes(4 << 20).with_swap(swap);
            let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
            region
                .connect(Box::new(manager.attach(region.page_limit()).unwrap()))
                .unwrap();
            Arc::new(region)
        })
        .collect();
    let expected: Vec<_> = std::thread::scope(|scope| {
        let memories = &memories;
        for (seed, region) in (99..).zip(&regions) {
            scope.spawn(move || disturb(region, race, seed));
        }
        let writers: Vec<_> = (0..WRITERS)
            .map(|id| scope.spawn(move || write(id, memories, race)))
            .collect();
        let results: Vec<_> = writers
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        results
            .into_iter()
            .flat_map(|result| result.expect("a writer found wrong bytes"))
            .collect()
    });
    println!("longest visit {:?} us", race.longest_visit_us);
    regions.iter().for_each(|region| assert_it_happened(region));
    manager.with(|domain| domain.check().unwrap());
    if race.parts_wanted > 0 {
        regions.iter().for_each(|region| assert_full(region, swap_pages));
    }
    let check = |when: &str| {
        for own in &expected {
            (0..WORDS).for_each(|index| own.check(&memories, index, when));
        }
    };
    check("while it is managed");
    drop(regions);
    check("after the regions were dropped");
}

/// With room for all in the swap files.
fn race(writes_wanted: u64) {
    let race = Race {
        writes_wanted,
        ..Race::default()
    };
    run(&race, 2 * PAGES);
}

#[test]
fn writes_race_with_runs_of_which_a_full_swap_file_takes_a_part() {
    let race = Race {
        writes_wanted: 1_000_000,
        parts_wanted: 30,
        ..Race::default()
    };
    run(&race, 40);
}

#[test]
fn ten_million_writes_race_with_the_engine() {
    race(10_000_000);
}

#[test]
#[ignore = "an hour; run with --ignored, or set the number of writes in PAGE_SHARE_WRITES"]
fn a_billion_writes_race_with_the_engine() {
    let writes = std::env::var("PAGE_SHARE_WRITES")
        .ok()
        .and_then(|text| text.parse().ok());
    race(writes.unwrap_or(1_000_000_000));
}
