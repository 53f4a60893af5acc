//! Tests of the region that need to see, or break, its inside.
#![allow(unsafe_code)]
// UNSAFETY: one test replaces a descriptor behind the handler's back.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::region::table::state::State as S;

use crate::{
    AnonymousMemory, Domain, Gfn, LocalManager, Options, PAGE_SIZE, Page, PageRun, PoolLimit, Region, State,
};

fn page(content: u64) -> Page {
    let mut page = [0; PAGE_SIZE];
    for (index, word) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = content
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .wrapping_add(index as u64)
            .to_le_bytes();
    }
    page
}

#[test]
fn equal_pages_of_two_guests_are_merged_and_read_the_same() {
    const PAGES: u32 = 2000;
    let manager = LocalManager::new(Domain::new(1 << 20).unwrap());
    let guests: Vec<_> = (0..2)
        .map(|_| {
            let memory = AnonymousMemory::new(PAGES).unwrap();
            for at in 0..PAGES {
                if at % 10 != 9 {
                    memory.write_page(at, &page(u64::from(at)));
                } else {
                    memory.store(at as usize * PAGE_SIZE, 0);
                }
            }
            let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
            region
                .connect(Box::new(manager.attach(region.page_limit()).unwrap()))
                .unwrap();
            (memory, region)
        })
        .collect();
    for _ in 0..3 {
        for (_, region) in &guests {
            region.scan_pass();
        }
    }
    for (memory, region) in &guests {
        let stats = region.stats();
        assert_eq!(stats.shared, 1800, "{stats:#?}");
        assert_eq!(stats.zero, 200, "{stats:#?}");
        for at in 0..PAGES {
            let expected = if at % 10 == 9 {
                [0; PAGE_SIZE]
            } else {
                page(u64::from(at))
            };
            assert_eq!(memory.read_page(at), expected, "page {at}");
        }
    }
    let (memory, region) = &guests[0];
    memory.write_page(5, &page(12345));
    for _ in 0..10 {
        region.scan_pass();
    }
    assert_eq!(region.state(Gfn::new(5)), State::Private);
    assert_eq!(memory.read_page(5), page(12345));
    assert_eq!(guests[1].0.read_page(5), page(5));
    for (_, region) in guests {
        drop(region);
    }
    manager.with(|domain| domain.check().unwrap());
}

#[test]
fn pages_that_a_full_pool_refused_are_merged_once_it_has_room() {
    const PAGES: u32 = 200;
    let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
    let limit = |pages| {
        let limit = PoolLimit { pages, alone: pages };
        manager.with(|domain| domain.limit_pool(limit)).unwrap();
    };
    limit(10);
    let memory = AnonymousMemory::new(PAGES).unwrap();
    (0..PAGES).for_each(|at| memory.write_page(at, &page(u64::from(at / 2))));
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
    let port = manager.attach(region.page_limit()).unwrap();
    region.connect(Box::new(port)).unwrap();
    (0..4).for_each(|_| region.scan_pass());
    assert_eq!(region.stats().shared, 20);
    // Not pages that were written lately: they may be squeezed meanwhile.
    assert_eq!(
        super::lock(&region.engine)
            .cold_pages(PAGES, 0)
            .iter()
            .map(|run| run.count)
            .sum::<u32>(),
        180
    );
    limit(1 << 10);
    let began = Instant::now();
    while region.stats().shared < u64::from(PAGES) {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", region.stats());
        std::thread::sleep(Duration::from_millis(50));
        region.scan_pass();
    }
    (0..PAGES).for_each(|at| assert_eq!(memory.read_page(at), page(u64::from(at / 2))));
}

/// Two guests with the same pages, merged.
fn merged(manager: &LocalManager, pages: u32) -> Vec<(AnonymousMemory, Region)> {
    let guests: Vec<_> = (0..2)
        .map(|_| {
            let memory = AnonymousMemory::new(pages).unwrap();
            (0..pages).for_each(|at| memory.write_page(at, &page(u64::from(at))));
            let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
            let port = manager.attach(region.page_limit()).unwrap();
            region.connect(Box::new(port)).unwrap();
            (memory, region)
        })
        .collect();
    for _ in 0..3 {
        guests.iter().for_each(|(_, region)| region.scan_pass());
    }
    guests
        .iter()
        .for_each(|(_, region)| assert_eq!(region.stats().shared, u64::from(pages)));
    guests
}

#[test]
fn a_page_that_the_fault_handler_has_in_hand_keeps_its_reference_when_the_manager_is_found_again() {
    let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
    let guests = merged(&manager, 100);
    let region = &guests[0].1;
    let all = super::scan::scanner::held_slots(&super::lock(&region.engine));
    assert_eq!(all.len(), 100);
    // What the handler does while it lets a write to a protected pool page through.
    let claim = region.guest.table.claim(50, State::Shared).unwrap();
    std::thread::scope(|scope| {
        let naming = scope.spawn(|| super::scan::scanner::held_slots(&super::lock(&region.engine)));
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
    let table = &region.guest.table;
    let places: Vec<u32> = all.numbers().map(|page| table.detail(page)).collect();
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
                let mut engine = super::lock(&region.engine);
                engine.rehome(all);
                engine.merge(all, &places);
                engine.clear_staging();
                // What was re-homed is merged again, and what could not be merged is at the next round.
                engine.returns.clear();
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

#[test]
fn an_old_pool_is_let_go_when_its_last_page_has_moved() {
    let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
    let guests = merged(&manager, 300);
    let old = guests.iter().map(|(_, region)| {
        let scanner = region.scanner();
        std::sync::Arc::downgrade(&scanner.session().unwrap().pool)
    });
    let old = old.collect::<Vec<_>>().swap_remove(0);
    manager.stop();
    guests.iter().for_each(|(_, region)| region.scan_pass());
    assert!(old.upgrade().is_some(), "still mapped");
    manager.restart(Domain::new(1 << 10).unwrap());
    for _ in 0..8 {
        guests.iter().for_each(|(_, region)| region.scan_pass());
    }
    for (memory, region) in &guests {
        assert_eq!(region.stats().shared, 300, "merged anew");
        (0..300).for_each(|at| assert_eq!(memory.read_page(at), page(u64::from(at))));
    }
    assert!(
        old.upgrade().is_none(),
        "nobody holds the old pool's memory any more"
    );
}

#[test]
fn a_region_that_ends_hands_back_what_it_was_granted_and_never_mapped() {
    const PAGES: u32 = 400;
    let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
    let guests: Vec<_> = (0..2)
        .map(|_| {
            let memory = AnonymousMemory::new(PAGES).unwrap();
            (0..PAGES).for_each(|at| memory.write_page(at, &page(u64::from(at % 200))));
            let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
            let port = manager.attach(region.page_limit()).unwrap();
            region.connect(Box::new(port)).unwrap();
            (memory, region)
        })
        .collect();
    // The first finds twins of its own and has offers waiting for it from the second; neither has mapped all yet.
    for (_, region) in guests.iter().chain(&guests) {
        while !region.scan_step(1).pass_finished && region.stats().shared == 0 {}
    }
    assert!(manager.with(|domain| domain.sizes().references).unwrap() > 0);
    for (memory, region) in guests {
        drop(region);
        (0..PAGES).for_each(|at| assert_eq!(memory.read_page(at), page(u64::from(at % 200))));
    }
    let sizes = manager.with(|domain| domain.sizes()).unwrap();
    assert_eq!((sizes.references, sizes.pool_pages), (0, 0));
}

/// Runs `body` in a process of its own and returns how that ended: the test calls itself.
fn in_child(name: &str, body: impl FnOnce()) -> Option<ExitStatus> {
    if std::env::var("PAGE_SHARE_CHILD").as_deref() == Ok(name) {
        body();
        return None;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("region::tests::{name}"), "--nocapture"])
        .env("PAGE_SHARE_CHILD", name)
        .output()
        .unwrap();
    for line in [output.stdout, output.stderr]
        .concat()
        .split(|byte| *byte == b'\n')
    {
        // Indented, so that the words of its test harness are not taken for those of this process's.
        println!("  {}", String::from_utf8_lossy(line));
    }
    Some(output.status)
}

fn small_region(options: Options) -> (AnonymousMemory, Region) {
    let memory = AnonymousMemory::new(1024).unwrap();
    (0..1024).for_each(|at| memory.write_page(at, &page(u64::from(at))));
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
    (memory, region)
}

#[test]
fn a_handler_that_dies_takes_the_process_with_it() {
    let status = in_child("a_handler_that_dies_takes_the_process_with_it", || {
        let (memory, region) = small_region(Options {
            store_bytes: 1 << 20,
            ..Options::default()
        });
        assert!(region.compress(PageRun::new(Gfn::new(0), 10)) > 0);
        // Held open, or the kernel itself would show zeros.
        let _watch = region.guest.watch.as_fd().try_clone_to_owned().unwrap();
        let nothing = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: only makes the handler's descriptor useless.
        unsafe { libc::dup2(nothing.as_raw_fd(), region.guest.watch.as_fd().as_raw_fd()) };
        region.handler.ring();
        memory.read_page(0);
        println!("the handler lives on");
        std::process::exit(0);
    });
    assert!(
        status.is_none_or(|status| status.signal() == Some(libc::SIGABRT)),
        "{status:?}"
    );
}

#[test]
fn a_page_that_is_there_already_is_never_overwritten() {
    let status = in_child("a_page_that_is_there_already_is_never_overwritten", || {
        let (_memory, region) = small_region(Options {
            store_bytes: 1 << 20,
            ..Options::default()
        });
        let run = PageRun::new(Gfn::new(0), 1);
        assert_eq!(region.compress(run), 1);
        assert_eq!(region.bring_back(run), 1);
        // The table lies: the page is present, but said to be in the store.
        assert_eq!(region.compress(PageRun::new(Gfn::new(1), 1)), 1);
        region.guest.table.set_detail(0, region.guest.table.detail(1));
        let claim = region.guest.table.claim(0, S::Private).unwrap();
        region.guest.table.settle(claim, S::Compressed);
        region.bring_back(run);
        println!("the page was filled twice");
    });
    assert!(
        status.is_none_or(|status| status.signal() == Some(libc::SIGABRT)),
        "{status:?}"
    );
}

#[test]
fn a_compressed_page_that_is_damaged_fails_like_broken_memory_and_is_never_wrong() {
    let name = "a_compressed_page_that_is_damaged_fails_like_broken_memory_and_is_never_wrong";
    let status = in_child(name, || {
        let (memory, region) = small_region(Options {
            store_bytes: 8 << 20,
            ..Options::default()
        });
        // A seventh of a page is content, so that it compresses.
        let content = |at: u64| std::array::from_fn(|byte| if byte < 600 { page(at)[byte] } else { 0 });
        (0..64).for_each(|at| memory.write_page(at, &content(u64::from(at))));
        assert_eq!(region.compress(PageRun::new(Gfn::new(0), 64)), 64);
        for at in [5, 20, 40] {
            let handle = crate::StoreHandle::from_bits(region.guest.table.detail(at));
            region.guest.keeping.store().damage(handle, 300);
        }
        // Neighbours, on its way and when they are brought back, are none the worse for it.
        assert!((0..16).all(|at| at == 5 || memory.read_page(at) == content(u64::from(at))));
        assert_eq!(
            region.state(Gfn::new(5)),
            State::Compressed,
            "nobody asked for it"
        );
        assert_eq!(region.bring_back(PageRun::new(Gfn::new(16), 16)), 15);
        assert!((16..32).all(|at| at == 20 || memory.read_page(at) == content(u64::from(at))));
        assert_eq!((region.stats().lost, region.stats().pages_lost), (1, 1));
        // A guest that gives a damaged page up gets a good one.
        region.release(PageRun::new(Gfn::new(20), 1), crate::Release::Report);
        assert!(memory.read_page(20) == [0; PAGE_SIZE]);
        region.release(PageRun::new(Gfn::new(5), 1), crate::Release::Report);
        assert!(memory.read_page(5) == [0; PAGE_SIZE]);
        println!("now the fault");
        memory.read_page(40);
        println!("a damaged page was read");
        std::process::exit(0);
    });
    assert!(
        status.is_none_or(|status| status.signal() == Some(libc::SIGBUS)),
        "{status:?}"
    );
}

#[test]
fn huge_blocks_are_left_alone_until_they_are_split_and_can_be_rebuilt() {
    let memory = AnonymousMemory::new(1536).unwrap();
    (0..1536).for_each(|at| memory.write_page(at, &page(u64::from(at))));
    let options = Options {
        blocks: crate::Blocks::Huge,
        store_bytes: 16 << 20,
        ..Options::default()
    };
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
    assert_eq!(region.stats().huge, 1536);
    assert_eq!(region.compress(PageRun::new(Gfn::new(0), 1536)), 0);
    assert_eq!(region.split_run(PageRun::new(Gfn::new(600), 1)), 1);
    assert_eq!((region.stats().huge, region.stats().private), (1024, 512));
    assert!(region.compress(PageRun::new(Gfn::new(512), 16)) > 0);
    assert!(!region.rebuild_block(Gfn::new(512)), "pages are missing");
    region.bring_back(PageRun::new(Gfn::new(512), 512));
    if region.rebuild_block(Gfn::new(512)) {
        assert_eq!((region.stats().huge, region.stats().blocks_rebuilt), (1536, 1));
    }
    assert_eq!(region.split_blocks(10), region.stats().blocks_split as u32 - 1);
    (0..1536).for_each(|at| assert!(memory.read_page(at) == page(u64::from(at)), "page {at}"));
}

#[cfg(feature = "vm-memory")]
#[test]
fn the_memory_of_a_vmm_is_adopted_with_its_hole() {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
    let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(4 << 20), 1 << 20)];
    let memory: GuestMemoryMmap<()> = GuestMemoryMmap::from_ranges(&ranges).unwrap();
    memory.write_slice(&page(7), GuestAddress(4 << 20)).unwrap();
    memory.write_slice(&page(7), GuestAddress(4096)).unwrap();
    let adopted = crate::MemoryRange::all_of_vm_memory(&memory).unwrap();
    let region = Region::adopt(adopted, Options::default()).unwrap();
    let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
    region
        .connect(Box::new(manager.attach(region.page_limit()).unwrap()))
        .unwrap();
    (0..4).for_each(|_| region.scan_pass());
    assert_eq!((region.stats().shared, region.page_limit()), (2, 1280));
    assert_eq!(region.state(Gfn::new(500)), State::Hole);
    let mut bytes = [0; PAGE_SIZE];
    memory.read_slice(&mut bytes, GuestAddress(4 << 20)).unwrap();
    assert!(bytes == page(7));
}

#[test]
fn a_page_that_two_guests_were_told_of_is_shared_before_either_pass_ends() {
    const PAGES: u32 = 4096;
    let manager = LocalManager::new(Domain::new(1 << 20).unwrap());
    let guests: Vec<_> = (0..2u64)
        .map(|guest| {
            let memory = AnonymousMemory::new(PAGES).unwrap();
            (0..PAGES).for_each(|at| memory.write_page(at, &page(u64::from(at) << 8 | guest)));
            let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
            region
                .connect(Box::new(manager.attach(region.page_limit()).unwrap()))
                .unwrap();
            (memory, region)
        })
        .collect();
    // The same ten blocks of a disk, read to different places.
    for (guest, first) in [(0, 100), (1, 3000)] {
        let (memory, region) = &guests[guest];
        (0..10).for_each(|block| memory.write_page(first + block, &page(1 << 40 | u64::from(block))));
        region.prioritize(PageRun::new(Gfn::new(first), 10));
        for _ in 0..4 {
            region.scan_step(1);
        }
    }
    let second = guests[1].1.stats();
    assert_eq!((second.shared, second.shared_by_hint, second.passes), (10, 10, 0));
    assert_eq!(second.pages_hinted, 20, "each is armed first and read then");
    for block in 0..10 {
        assert_eq!(
            guests[1].0.read_page(3000 + block),
            page(1 << 40 | u64::from(block))
        );
    }
    // The first hears of it with the offers at the end of its pass.
    guests[0].1.scan_pass();
    guests[0].1.scan_pass();
    assert_eq!(guests[0].1.stats().shared, 10);
}

/// A guest whose page `at` has content `content(at)`, connected.
fn guest_with(manager: &LocalManager, content: impl Fn(u32) -> u64) -> (AnonymousMemory, Region) {
    const PAGES: u32 = 512;
    let memory = AnonymousMemory::new(PAGES).unwrap();
    (0..PAGES).for_each(|at| memory.write_page(at, &page(content(at))));
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
    let port = manager.attach(region.page_limit()).unwrap();
    region.connect(Box::new(port)).unwrap();
    (memory, region)
}

#[test]
fn pages_between_equal_pages_are_guessed_and_a_wrong_guess_is_made_once() {
    let manager = LocalManager::new(Domain::new(1 << 20).unwrap());
    let odd = |at: u32| at % 16 == 7;
    let contents: [&dyn Fn(u32) -> u64; 4] = [
        &|at| u64::from(at),
        &|at| u64::from(at),
        &|at| u64::from(at),
        // Two guests' pages agree at both ends of each guess, and one between differs.
        &|at| u64::from(at) + if odd(at) { 1000 } else { 0 },
    ];
    let mut guests = Vec::new();
    for content in contents {
        let (memory, region) = guest_with(&manager, content);
        guests.push((memory, region));
        for _ in 0..3 {
            guests.iter().for_each(|(_, region)| region.scan_pass());
        }
    }
    let stats: Vec<_> = guests.iter().map(|(_, region)| region.stats()).collect();
    let claimed = manager.with(|domain| domain.counters().claimed).unwrap();
    assert!(claimed > 900, "{claimed}");
    assert_eq!(
        (stats[1].pages_hashed, stats[2].pages_hashed),
        (512, 33),
        "{stats:#?}"
    );
    assert_eq!(stats[3].pages_differed, 32, "{:#?}", stats[3]);
    assert_eq!(stats[3].shared, 480, "{:#?}", stats[3]);
    for _ in 0..6 {
        guests[3].1.scan_pass();
    }
    let after = guests[3].1.stats();
    assert_eq!(after.pages_differed, 32, "{after:#?}");
    assert_eq!(after.pages_hashed, 33 + 32, "{after:#?}");
    for ((memory, _), content) in guests.iter().zip(contents) {
        for at in 0..512 {
            assert_eq!(memory.read_page(at), page(content(at)), "page {at}");
        }
    }
    for (_, region) in &guests {
        region.unshare_all();
    }
    drop(guests);
    manager.with(|domain| domain.check().unwrap());
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
                    for page in 0..PAGES {
                        if let Some(claim) = region.guest.table.claim(page, State::Sampled) {
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
        let left = (0..PAGES).find(|&page| region.guest.table.state(page) == State::Sampled);
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
    let stalled = region.guest.keeping.swap();
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
            super::scan::scanner::held_slots(&super::lock(&region.engine));
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

#[test]
fn a_page_that_is_excluded_stays_when_its_neighbours_are_taken() {
    let (memory, region) = swapping_region();
    region.exclude(PageRun::new(Gfn::new(20), 1));
    assert_eq!(region.swap_out(PageRun::new(Gfn::new(10), 20)).unwrap(), 19);
    assert_eq!(region.state(Gfn::new(20)), State::Private);
    (0..64).for_each(|at| assert_eq!(memory.read_page(at), page(u64::from(at))));
}
