//! Writers whose pages are given up, split, merged, squeezed and joined to huge pages under them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use page_share::{AnonymousMemory, Blocks, Gfn, Options, PAGE_SIZE, PageRun, Region, Release, Stats};

/// Six blocks of 2 MiB.
const PAGES: u32 = 3072;
const WRITERS: u32 = 3;

/// Only a page that is never settled takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Blocks that are split in each round at least.
const SPLITS: u64 = 7;

/// xorshift64: what comes next only has to differ.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % u64::from(below)) as u32
    }
}

/// Writes, checks and gives up every third page, and is the only one that does.
struct Writer<'a> {
    memory: &'a AnonymousMemory,
    region: &'a Region,
    number: u32,
    random: Random,
    /// What each of its pages holds, first and last word.
    holds: Vec<u64>,
    releases: u64,
}

impl Writer<'_> {
    fn step(&mut self) {
        let mine = self.random.next(PAGES / WRITERS);
        let page = mine * WRITERS + self.number;
        let start = page as usize * PAGE_SIZE;
        let ends = [start, start + PAGE_SIZE - 8];
        let expected = self.holds[mine as usize];
        let found = ends.map(|at| self.memory.load(at));
        assert_eq!(found, [expected; 2], "page {page:#x}: a write was lost");
        if self.random.next(8) == 0 {
            let why = match self.random.next(2) {
                0 => Release::Balloon,
                _ => Release::Report,
            };
            self.region.release(PageRun::new(Gfn::new(page), 1), why);
            self.releases += 1;
            self.holds[mine as usize] = 0;
            return;
        }
        let next = expected.wrapping_add(0x9E37_79B9_7F4A_7C15) | 1;
        ends.iter().for_each(|&at| self.memory.store(at, next));
        self.holds[mine as usize] = next;
    }
}

/// Splits and joins blocks, and does to split ones what the engine does.
fn disturb(memory: &AnonymousMemory, region: &Region, random: &mut Random) {
    let block = PageRun::new(Gfn::new(random.next(PAGES / 512) * 512), 512);
    match random.next(6) {
        0 | 1 => drop(region.split_run(block)),
        2 => drop(region.compress(PageRun::new(block.first, 64))),
        3 => region.scan_pass(),
        _ => {
            // What is missing is filled by a touch; a block with a hole cannot be joined.
            for page in 0..512 {
                memory.load((block.first.get() + page) as usize * PAGE_SIZE);
            }
            region.rebuild_block(block.first);
        }
    }
}

/// What the region holds once no page is in other hands: neighbours of a touched page come back after its access went
/// on, and so perhaps after the writers have ended.
fn at_rest(region: &Region) -> Stats {
    let start = Instant::now();
    loop {
        let stats = region.stats();
        if stats.in_transit == 0 {
            return stats;
        }
        assert!(start.elapsed() < PATIENCE, "a page stays in transit: {stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn no_write_is_lost_while_blocks_are_split_joined_and_given_up() {
    let (splits, releases) = (AtomicU64::new(0), AtomicU64::new(0));
    let start = Instant::now();
    for round in 1..=8 {
        let memory = AnonymousMemory::new(PAGES).unwrap();
        let options = Options::default()
            .with_blocks(Blocks::Huge)
            .with_store_bytes(16 << 20);
        let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|number| Writer {
                    memory: &memory,
                    region: &region,
                    number,
                    random: Random(round * 77 + u64::from(number)),
                    holds: vec![0; (PAGES / WRITERS) as usize],
                    releases: 0,
                })
                .map(|mut writer| {
                    let stop = &stop;
                    scope.spawn(move || {
                        while !stop.load(Ordering::Relaxed) {
                            writer.step();
                        }
                        writer.releases
                    })
                })
                .collect();
            let mut random = Random(round);
            let is_over = || match start.elapsed() {
                // As soon as a writer has failed the others need not go on.
                _ if writers.iter().any(std::thread::ScopedJoinHandle::is_finished) => true,
                time if time < Duration::from_millis(700) * round as u32 => false,
                time => time > PATIENCE || region.stats().blocks_split >= SPLITS,
            };
            while !is_over() {
                disturb(&memory, &region, &mut random);
            }
            stop.store(true, Ordering::Relaxed);
            for writer in writers {
                releases.fetch_add(writer.join().unwrap(), Ordering::Relaxed);
            }
        });
        let stats = at_rest(&region);
        splits.fetch_add(stats.blocks_split, Ordering::Relaxed);
        if round == 8 {
            println!("{stats:?}");
        }
    }
    let (splits, releases) = (splits.into_inner(), releases.into_inner());
    println!("{splits} splits, {releases} releases");
    assert!(splits >= 8 * SPLITS, "only {splits} blocks were split");
    assert!(releases >= 10_000, "only {releases} pages were given up");
}
