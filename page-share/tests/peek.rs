//! Reading every page where it is, and nothing changes by it.

mod contents;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use contents::page;
use page_share::{
    AnonymousMemory, Blocks, Domain, DomainKey, Gfn, LocalManager, Options, PAGE_SIZE, Page, PageHasher,
    PageRun, Region, Release, State, Stats, Swap,
};

/// Three blocks of 2 MiB.
const PAGES: u32 = 1536;

fn run(first: u32, count: u32) -> PageRun {
    PageRun::new(Gfn::new(first), count)
}

/// A guest with pages in every state that a page can rest in, and what each of its pages holds.
fn guest(swap: Swap) -> (LocalManager, AnonymousMemory, Region, Vec<Page>) {
    let memory = AnonymousMemory::new(PAGES).unwrap();
    let mut expected = vec![[0; PAGE_SIZE]; PAGES as usize];
    let mut write = |at: u32, bytes: Page| {
        memory.write_page(at, &bytes);
        expected[at as usize] = bytes;
    };
    // 0..512 stays a huge block with some holes in it; of 512..1024 every two pages are alike.
    (0..400).for_each(|at| write(at, page(at.into())));
    (512..1024).for_each(|at| write(at, page(u64::from(at / 2))));
    (1024..1040).for_each(|at| write(at, [0; PAGE_SIZE]));
    (1040..1400).for_each(|at| write(at, page(at.into())));
    let options = Options::default()
        .with_blocks(Blocks::Huge)
        .with_store_bytes(8 << 20)
        .with_swap(swap);
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
    assert_eq!(region.split_run(run(512, 1024)), 2);
    let manager = LocalManager::new(Domain::new(1 << 16).unwrap());
    region.connect(Box::new(manager.attach(PAGES).unwrap())).unwrap();
    (0..4).for_each(|_| region.scan_pass());
    assert_eq!(region.stats().shared, 512, "{:#?}", region.stats());
    for at in [600, 700, 701] {
        memory.write_page(at, &page(u64::from(9999 - at)));
        expected[at as usize] = page(u64::from(9999 - at));
    }
    region.scan_pass();
    assert_eq!(region.compress(run(1040, 32)), 32);
    assert_eq!(region.swap_out(run(1072, 32)).unwrap(), 32);
    region.release(run(1200, 8), Release::Balloon);
    region.release(run(1208, 8), Release::Report);
    region.release(run(520, 4), Release::Report);
    for at in (1200..1216).chain(520..524) {
        expected[at as usize] = [0; PAGE_SIZE];
    }
    assert!(region.start_sample(64) > 0);
    (manager, memory, region, expected)
}

fn states(region: &Region) -> Vec<State> {
    (0..PAGES).map(|at| region.state(Gfn::new(at))).collect()
}

/// The counters once the fault handler has gone to sleep and counted its time.
fn resting(region: &Region) -> Stats {
    let (start, mut before) = (Instant::now(), region.stats());
    loop {
        std::thread::sleep(Duration::from_millis(5));
        let now = region.stats();
        if now == before {
            return now;
        }
        before = now;
        assert!(
            start.elapsed() < Duration::from_secs(300),
            "the region never rests"
        );
    }
}

#[test]
fn every_page_is_read_where_it_is_and_stays_there() {
    let (_manager, memory, region, expected) = guest(Swap::create(&std::env::temp_dir(), PAGES).unwrap());
    let (before, counted) = (states(&region), resting(&region));
    let mut seen = HashMap::new();
    for _ in 0..2 {
        let mut next = 0;
        region.peek(run(0, u32::MAX), |gfn, state, bytes| {
            assert_eq!(gfn.get(), next, "each page once, in order");
            next += 1;
            assert_eq!(state, before[gfn.get() as usize], "{gfn:?}");
            assert!(bytes == Some(&expected[gfn.get() as usize]), "{gfn:?}, {state:?}");
            *seen.entry(state).or_insert(0) += 1;
        });
        assert_eq!(next, PAGES);
    }
    for state in [
        State::Empty,
        State::Private,
        State::Zero,
        State::Sampled,
        State::Shared,
        State::Broken,
        State::Compressed,
        State::Swapped,
        State::Ballooned,
        State::Huge,
    ] {
        assert!(seen.contains_key(&state), "no page was {state:?}: {seen:?}");
    }
    assert!(states(&region) == before);
    assert_eq!(resting(&region), counted);
    // Still all there, and the guest sees the same.
    (0..PAGES).for_each(|at| assert!(memory.read_page(at) == expected[at as usize], "page {at}"));
}

#[test]
fn hashes_of_all_guests_count_what_could_be_shared() {
    let (_manager, _memory, region, expected) = guest(Swap::create(&std::env::temp_dir(), PAGES).unwrap());
    let hasher = PageHasher::new(&DomainKey::random().unwrap());
    let mut hashes = Vec::new();
    region.peek(run(0, PAGES), |_, _, bytes| {
        hashes.push(hasher.hash(bytes.unwrap()));
    });
    let expected: Vec<_> = expected.iter().map(|page| hasher.hash(page)).collect();
    assert!(hashes == expected);
}

#[test]
fn a_stored_page_that_is_damaged_has_no_bytes_and_is_not_lost_by_looking() {
    let memfd = tempfile::tempfile().unwrap();
    let (_manager, _memory, region, expected) =
        guest(Swap::with_file(memfd.try_clone().unwrap(), PAGES).unwrap());
    std::os::unix::fs::FileExt::write_all_at(&memfd, &[0x55; 8], 3 * PAGE_SIZE as u64).unwrap();
    let mut damaged = Vec::new();
    region.peek(run(1072, 32), |gfn, state, bytes| match bytes {
        Some(bytes) => assert!(*bytes == expected[gfn.get() as usize], "{gfn:?}"),
        None => damaged.push((gfn.get(), state)),
    });
    assert_eq!(damaged, [(1075, State::Swapped)]);
    assert_eq!((region.stats().lost, region.stats().pages_lost), (0, 0));
}

#[test]
fn looking_while_the_guest_runs_shows_a_page_of_one_time_or_the_other() {
    let (_manager, memory, region, _) = guest(Swap::create(&std::env::temp_dir(), PAGES).unwrap());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                region.compress(run(1040, 64));
                region.swap_out(run(1104, 64)).unwrap();
                for at in 1040..1168 {
                    let _ = memory.read_page(at);
                }
            }
        });
        let mut wrong = Vec::new();
        for _ in 0..200 {
            region.peek(run(1040, 128), |gfn, state, bytes| {
                if bytes != Some(&page(gfn.get().into())) {
                    wrong.push((gfn, state));
                }
            });
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(wrong.is_empty(), "{wrong:?}");
    });
}
