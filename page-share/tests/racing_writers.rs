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
use page_share::{AnonymousMemory, Domain, Gfn, LocalManager, Options, PAGE_SIZE, PageRun, Region, Swap};

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

/// Writes until `target` writes were made by all; returns what its pages must hold.
fn write(
    id: usize,
    memories: &[AnonymousMemory],
    writes: &AtomicU64,
    stalls: &AtomicU64,
    target: u64,
) -> Vec<Own> {
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
    while writes.load(Ordering::Relaxed) < target {
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
        stalls.fetch_max(since.elapsed().as_micros() as u64, Ordering::Relaxed);
        writes.fetch_add(BURST, Ordering::Relaxed);
        if random.next().is_multiple_of(16) {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    own
}

/// Everything an engine can do to a page, over and over.
fn disturb(region: &Region, stop: &AtomicBool, seed: u64) {
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        region.scan_pass();
        region.finish_sample();
        region.start_sample(200);
        for run in region.cold_pages(300) {
            match random.next() % 3 {
                0 => drop(region.compress(run)),
                1 => drop(region.swap_out(run).unwrap()),
                _ => {}
            }
        }
        // Whole stretches, so that there are neighbours to bring back.
        let first = (random.next() % u64::from(PAGES)) as u32;
        region.compress(PageRun::new(Gfn::new(first), 64));
        let first = (random.next() % u64::from(PAGES)) as u32;
        region.swap_out(PageRun::new(Gfn::new(first), 64)).unwrap();
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

fn race(target: u64) {
    let manager = LocalManager::new(Domain::new(1 << 20).unwrap());
    let directory = tempfile::tempdir().unwrap();
    let memories: Vec<_> = (0..GUESTS)
        .map(|_| AnonymousMemory::new(PAGES).unwrap())
        .collect();
    memories.iter().for_each(fill);
    let regions: Vec<_> = memories
        .iter()
        .map(|memory| {
            let swap = Some(Swap::create(directory.path(), 2 * PAGES).unwrap());
            let options = Options::default().with_store_bytes(4 << 20).with_swap(swap);
            let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
            region
                .connect(Box::new(manager.attach(region.page_limit()).unwrap()))
                .unwrap();
            Arc::new(region)
        })
        .collect();
    let (writes, stalls, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let expected: Vec<_> = std::thread::scope(|scope| {
        let (memories, writes, stalls, stop) = (&memories, &writes, &stalls, &stop);
        for (index, region) in regions.iter().enumerate() {
            scope.spawn(move || disturb(region, stop, 99 + index as u64));
        }
        let writers: Vec<_> = (0..WRITERS)
            .map(|id| scope.spawn(move || write(id, memories, writes, stalls, target)))
            .collect();
        let results: Vec<_> = writers
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        stop.store(true, Ordering::Relaxed);
        results
            .into_iter()
            .flat_map(|result| result.expect("a writer found wrong bytes"))
            .collect()
    });
    println!("longest visit {} us", stalls.load(Ordering::Relaxed));
    regions.iter().for_each(|region| assert_it_happened(region));
    manager.with(|domain| domain.check().unwrap());
    let check = |when: &str| {
        for own in &expected {
            (0..WORDS).for_each(|index| own.check(&memories, index, when));
        }
    };
    check("while it is managed");
    drop(regions);
    check("after the regions were dropped");
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
