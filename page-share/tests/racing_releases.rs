//! Pages that are given up, and system calls that read and write guest memory, race with compression and swap.
//!
//! Pages belong to owners in pairs, so that every group of neighbours has pages of all owners: what one gives up is in
//! the middle of what others bring back. An owner knows every byte of its pages. It reads and writes them by itself or
//! has the kernel do it, over the border of the two pages, and gives them up to the balloon or as free pages. Store and
//! swap file are too small for all, so that both are full again and again, and slots are used over and over.
#![allow(unsafe_code)]
// UNSAFETY: the kernel reads and writes managed memory, as it does for a device.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use page_share::{AnonymousMemory, Gfn, Options, PAGE_SIZE, PageRun, Region, Release, Swap};

/// No multiple of anything.
const PAGES: u32 = 1003;
const OWNERS: u32 = 3;
/// Most pages in the swap file, and bytes for compressed ones.
const SWAP_PAGES: u32 = 300;
const STORE_BYTES: usize = 1 << 20;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// One owner and what its pages hold.
struct Owner<'a> {
    memory: &'a AnonymousMemory,
    region: &'a Region,
    random: Random,
    file: File,
    /// First page and bytes of each pair; the last has one page only.
    pairs: Vec<(u32, Vec<u8>)>,
}

impl<'a> Owner<'a> {
    fn new(id: u32, memory: &'a AnonymousMemory, region: &'a Region) -> Self {
        let pages = |first: u32| (PAGES - first).min(2) as usize;
        let pairs = (0..PAGES.div_ceil(2))
            .filter(|pair| pair % OWNERS == id)
            .map(|pair| (pair * 2, vec![0; pages(pair * 2) * PAGE_SIZE]));
        Self {
            memory,
            region,
            random: Random(0x5DEE_CE66 + u64::from(id)),
            file: tempfile::tempfile().unwrap(),
            pairs: pairs.collect(),
        }
    }

    fn visit(&mut self) {
        let pair = self.random.below(self.pairs.len() as u64) as usize;
        match self.random.below(10) {
            0..3 => self.read(pair),
            3..5 => self.kernel_reads(pair),
            5..7 => self.write(pair),
            7..9 => self.kernel_writes(pair),
            _ => self.give_up(pair),
        }
    }

    fn address(&self, pair: usize, offset: usize) -> *mut libc::c_void {
        (self.memory.address() + self.pairs[pair].0 as usize * PAGE_SIZE + offset) as *mut libc::c_void
    }

    /// Some bytes of the pair: where they start, and how many.
    fn part(&mut self, pair: usize) -> (usize, usize) {
        let bytes = self.pairs[pair].1.len() as u64;
        let start = self.random.below(bytes);
        (start as usize, 1 + self.random.below(bytes - start) as usize)
    }

    fn read(&mut self, pair: usize) {
        let (first, bytes) = &self.pairs[pair];
        for (page, expected) in (*first..).zip(bytes.chunks(PAGE_SIZE)) {
            assert!(
                self.memory.read_page(page) == *expected,
                "page {page:#x} is wrong"
            );
        }
    }

    fn kernel_reads(&mut self, pair: usize) {
        let (start, count) = self.part(pair);
        // SAFETY: reads part of two mapped pages.
        let wrote = unsafe { libc::pwrite(self.file.as_raw_fd(), self.address(pair, start), count, 0) };
        assert_eq!(wrote, count as isize, "{}", std::io::Error::last_os_error());
        let mut seen = vec![0; count];
        std::os::unix::fs::FileExt::read_exact_at(&self.file, &mut seen, 0).unwrap();
        let (first, bytes) = &self.pairs[pair];
        assert!(
            seen == bytes[start..start + count],
            "the kernel read wrong bytes of page {first:#x}"
        );
    }

    /// New bytes for a part of the pair: noise, or such that compress well.
    fn renew(&mut self, pair: usize) -> (usize, usize) {
        let (start, count) = self.part(pair);
        let noise = self.random.below(3) == 0;
        let fill = self.random.below(256) as u8;
        for at in start..start + count {
            self.pairs[pair].1[at] = if noise { self.random.below(256) as u8 } else { fill };
        }
        (start, count)
    }

    fn write(&mut self, pair: usize) {
        self.renew(pair);
        let (first, bytes) = &self.pairs[pair];
        for (page, bytes) in (*first..).zip(bytes.as_chunks::<PAGE_SIZE>().0) {
            self.memory.write_page(page, bytes);
        }
    }

    fn kernel_writes(&mut self, pair: usize) {
        let (start, count) = self.renew(pair);
        let bytes = &self.pairs[pair].1[start..start + count];
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, 0).unwrap();
        // SAFETY: writes part of two mapped pages.
        let got = unsafe { libc::pread(self.file.as_raw_fd(), self.address(pair, start), count, 0) };
        assert_eq!(got, count as isize, "{}", std::io::Error::last_os_error());
    }

    fn give_up(&mut self, pair: usize) {
        let (first, bytes) = &mut self.pairs[pair];
        let run = PageRun::new(Gfn::new(*first), (bytes.len() / PAGE_SIZE) as u32);
        if self.random.below(2) == 0 {
            self.region.release(run, Release::Report);
        } else {
            self.region.release(run, Release::Balloon);
            if self.random.below(2) == 0 {
                self.region.deflate(run);
            }
        }
        bytes.fill(0);
        self.read(pair);
    }
}

/// Squeezes pages out, until told to stop.
fn squeeze(region: &Region, stop: &AtomicBool) {
    let mut random = Random(77);
    while !stop.load(Ordering::Relaxed) {
        let run = PageRun::new(
            Gfn::new(random.below(u64::from(PAGES)) as u32),
            1 + random.below(200) as u32,
        );
        match random.below(3) {
            0 => drop(region.compress(run)),
            // Often full.
            _ => drop(region.swap_out(run)),
        }
    }
}

/// Brings back, samples, looks at and gates pages, until told to stop.
fn meddle(region: &Region, stop: &AtomicBool) {
    let mut random = Random(78);
    while !stop.load(Ordering::Relaxed) {
        let run = PageRun::new(
            Gfn::new(random.below(u64::from(PAGES)) as u32),
            1 + random.below(50) as u32,
        );
        match random.below(64) {
            0..16 => drop(region.bring_back(run)),
            16..32 => region.peek(run, |page, state, bytes| {
                assert!(bytes.is_some(), "{page:?}, {state:?}, cannot be read");
            }),
            32..40 => drop(region.start_sample(100)),
            40..48 => drop(region.finish_sample()),
            48..62 => region.scan_pass(),
            62 => drop(region.pin(PageRun::new(run.first, 1))),
            _ => {
                region.close_gate();
                region.add_credit(20);
                std::thread::sleep(Duration::from_millis(1));
                region.open_gate();
            }
        }
    }
}

fn race(visits: u64) {
    let memory = AnonymousMemory::new(PAGES).unwrap();
    let options = Options::default()
        .with_store_bytes(STORE_BYTES)
        .with_swap(Swap::create(&std::env::temp_dir(), SWAP_PAGES).unwrap());
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut owners: Vec<Owner<'_>> = std::thread::scope(|scope| {
        let (memory, region, stop, done) = (&memory, &region, &stop, &done);
        scope.spawn(|| squeeze(region, stop));
        scope.spawn(|| meddle(region, stop));
        let owners: Vec<_> = (0..OWNERS)
            .map(|id| {
                scope.spawn(move || {
                    let mut owner = Owner::new(id, memory, region);
                    while done.fetch_add(1, Ordering::Relaxed) < visits {
                        owner.visit();
                    }
                    owner
                })
            })
            .collect();
        let owners: Vec<_> = owners
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        stop.store(true, Ordering::Relaxed);
        owners
            .into_iter()
            .map(|owner| owner.expect("an owner found wrong bytes"))
            .collect()
    });
    let stats = region.stats();
    println!("{stats:#?}");
    for (what, count) in [
        ("decompressed", stats.pages_decompressed),
        ("swapped in", stats.pages_swapped_in),
        ("swapped in as neighbours", stats.neighbours_swapped_in),
        ("given up", stats.pages_released),
        ("touched in the balloon", stats.balloon_pops),
    ] {
        assert!(count > 20, "only {count} pages were {what}");
    }
    assert_eq!(stats.pages_lost, 0);
    owners.iter_mut().for_each(|owner| {
        (0..owner.pairs.len()).for_each(|pair| owner.read(pair));
    });
    let bytes: Vec<(u32, Vec<u8>)> = owners.into_iter().flat_map(|owner| owner.pairs).collect();
    drop(region);
    for (first, bytes) in bytes {
        for (page, expected) in (first..).zip(bytes.chunks(PAGE_SIZE)) {
            assert!(
                memory.read_page(page) == *expected,
                "page {page:#x} is wrong at the end"
            );
        }
    }
}

#[test]
fn pages_given_up_race_with_their_neighbours_return() {
    race(40_000);
}

#[test]
#[ignore = "half an hour; the number of visits can be set in PAGE_SHARE_VISITS"]
fn pages_given_up_race_with_their_neighbours_return_for_long() {
    let visits = std::env::var("PAGE_SHARE_VISITS")
        .ok()
        .and_then(|text| text.parse().ok());
    race(visits.unwrap_or(20_000_000));
}
