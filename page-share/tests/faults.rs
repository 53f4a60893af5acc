//! What goes wrong, and what must hold all the same.
#![allow(unsafe_code)]
// UNSAFETY: fork, raw reads into managed memory and address space that is used up on purpose.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use page_share::port::{Answer, Offer, Port, PortError, Publication, Reconnected, Report, Session};
use page_share::{
    AnonymousMemory, Domain, Gfn, LocalManager, LocalPort, Options, PAGE_SIZE, Page, PageRun, PoolGeneration,
    Region, Release, Slot, State, Swap, SwapOutError,
};

const PAGES: u32 = 600;

fn page(content: u64) -> Page {
    let mut page = [0; PAGE_SIZE];
    for (index, word) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = (content + 1)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .wrapping_mul(1 + index as u64 / 8)
            .to_le_bytes();
    }
    page
}

fn all() -> PageRun {
    PageRun::new(Gfn::new(0), PAGES)
}

fn manager() -> LocalManager {
    LocalManager::new(Domain::new(1 << 16).unwrap())
}

fn options() -> Options {
    let swap = Swap::create(&std::env::temp_dir(), PAGES).unwrap();
    Options {
        store_bytes: 8 << 20,
        swap: Some(swap),
        ..Options::default()
    }
}

/// A guest whose page `n` has content `content(n)`.
fn guest(content: impl Fn(u32) -> u64, options: Options) -> (AnonymousMemory, Region) {
    let memory = AnonymousMemory::new(PAGES).unwrap();
    for at in 0..PAGES {
        memory.write_page(at, &page(content(at)));
    }
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
    (memory, region)
}

/// A guest of which every two pages are alike, all merged.
fn merged_guest(manager: &LocalManager, options: Options) -> (AnonymousMemory, Region) {
    let (memory, region) = guest(|at| u64::from(at / 2), options);
    region.connect(Box::new(manager.attach(PAGES).unwrap())).unwrap();
    (0..4).for_each(|_| region.scan_pass());
    assert_eq!(region.stats().shared, u64::from(PAGES), "{:#?}", region.stats());
    (memory, region)
}

fn assert_pages(memory: &AnonymousMemory, content: impl Fn(u32) -> u64) {
    for at in 0..PAGES {
        assert!(memory.read_page(at) == page(content(at)), "page {at} is wrong");
    }
}

fn host_address(memory: &AnonymousMemory, page: u32) -> *mut libc::c_void {
    (memory.address() + page as usize * PAGE_SIZE) as *mut libc::c_void
}

/// Runs `body` in a process of its own and returns how that ended: the test calls itself.
fn in_child(name: &str, body: impl FnOnce()) -> Option<std::process::ExitStatus> {
    if std::env::var("PAGE_SHARE_CHILD").as_deref() == Ok(name) {
        body();
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture"])
        .env("PAGE_SHARE_CHILD", name);
    Some(command.status().unwrap())
}

#[test]
fn a_merged_page_that_is_released_reads_zero() {
    let (memory, region) = merged_guest(&manager(), options());
    // Broken ones too.
    memory.store(PAGE_SIZE, 7);
    for why in [Release::Balloon, Release::Report] {
        let run = PageRun::new(Gfn::new(if why == Release::Balloon { 0 } else { 100 }), 100);
        assert_eq!(region.release(run, why), 100);
        for at in run.first.get()..run.first.get() + 100 {
            assert!(
                memory.read_page(at) == [0; PAGE_SIZE],
                "page {at} shows old bytes"
            );
        }
    }
    assert_eq!(region.stats().balloon_pops, 100);
}

#[test]
fn a_compressed_or_swapped_page_that_is_released_drops_its_copy() {
    let (memory, region) = guest(u64::from, options());
    assert_eq!(region.compress(PageRun::new(Gfn::new(0), 100)), 100);
    assert_eq!(region.swap_out(PageRun::new(Gfn::new(100), 100)).unwrap(), 100);
    region.release(PageRun::new(Gfn::new(0), 200), Release::Balloon);
    for at in 0..200 {
        assert!(memory.read_page(at) == [0; PAGE_SIZE]);
    }
    assert_eq!(
        (region.stats().pages_decompressed, region.stats().pages_swapped_in),
        (0, 0)
    );
}

#[test]
fn pages_of_zeros_are_never_stored() {
    let (memory, region) = guest(u64::from, options());
    let zeros = |at: &u32| at.is_multiple_of(3);
    (0..200)
        .filter(zeros)
        .for_each(|at| memory.write_page(at, &[0; PAGE_SIZE]));
    assert_eq!(region.compress(PageRun::new(Gfn::new(0), 100)), 100);
    assert_eq!(region.swap_out(PageRun::new(Gfn::new(100), 100)).unwrap(), 100);
    let stats = region.stats();
    assert_eq!((stats.compressed, stats.swapped, stats.zero), (66, 67, 67));
    assert_eq!((stats.pages_compressed, stats.pages_swapped_out), (66, 67));
    assert_eq!(stats.pages_zeroed, 67);
    // What is a zero page already is worth nothing.
    assert_eq!(region.compress(PageRun::new(Gfn::new(0), 100)), 0);
    assert_eq!(region.stats().pages_zeroed, 67);
    for at in 0..200 {
        let expected = if zeros(&at) {
            [0; PAGE_SIZE]
        } else {
            page(u64::from(at))
        };
        assert!(memory.read_page(at) == expected, "page {at}");
    }
}

#[test]
fn a_released_page_that_is_written_again_is_found_by_the_scan() {
    let manager = manager();
    let (memory, region) = merged_guest(&manager, options());
    region.release(all(), Release::Report);
    for at in 0..PAGES {
        memory.write_page(at, &page(u64::from(at / 2)));
    }
    (0..4).for_each(|_| region.scan_pass());
    assert_eq!(region.stats().shared, u64::from(PAGES), "{:#?}", region.stats());
    assert_pages(&memory, |at| u64::from(at / 2));
}

#[test]
fn dropping_a_region_gives_everything_back_first() {
    let manager = manager();
    let (memory, region) = merged_guest(&manager, options());
    region.unshare_all();
    (0..2).for_each(|_| region.scan_pass());
    region.unshare_all();
    assert!(region.start_sample(50) > 0);
    region.compress(PageRun::new(Gfn::new(0), 100));
    region.swap_out(PageRun::new(Gfn::new(100), 100)).unwrap();
    let stats = region.stats();
    assert!(
        stats.sampled > 0 && stats.compressed > 0 && stats.swapped > 0,
        "{stats:#?}"
    );
    drop(region);
    assert_pages(&memory, |at| u64::from(at / 2));
    assert_eq!(manager.with(|domain| domain.sizes().references), Some(0));
}

#[test]
fn discarding_a_region_leaves_zeros_and_no_references() {
    let manager = manager();
    let (memory, region) = merged_guest(&manager, options());
    region.discard();
    assert!((0..PAGES).all(|at| memory.read_page(at) == [0; PAGE_SIZE]));
    assert_eq!(manager.with(|domain| domain.sizes().references), Some(0));
}

#[test]
fn system_calls_reach_pages_that_are_elsewhere() {
    let (memory, region) = guest(u64::from, options());
    region.compress(PageRun::new(Gfn::new(0), 4));
    let out = region.swap_out(PageRun::new(Gfn::new(4), 4)).unwrap();
    assert_eq!(out, 4, "{:#?}", region.stats());
    let mut file = tempfile::tempfile().unwrap();
    // SAFETY: reads 8 mapped pages; the kernel takes the faults.
    let wrote = unsafe { libc::write(file.as_raw_fd(), host_address(&memory, 0), 8 * PAGE_SIZE) };
    assert_eq!(wrote, 8 * PAGE_SIZE as isize);
    let mut bytes = vec![0; 8 * PAGE_SIZE];
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_exact(&mut bytes).unwrap();
    for at in 0..8 {
        assert!(bytes[at * PAGE_SIZE..][..PAGE_SIZE] == page(at as u64));
    }
    assert_eq!(
        (region.stats().pages_decompressed, region.stats().pages_swapped_in),
        (4, 4)
    );
}

/// Waits until `done`, for what happens after the page that was touched is there.
fn soon(done: impl Fn() -> bool, region: &Region) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "{:#?}", region.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn states(region: &Region, pages: std::ops::Range<u32>) -> Vec<State> {
    pages.map(|at| region.state(Gfn::new(at))).collect()
}

#[test]
fn a_touched_page_brings_its_neighbours_back() {
    let (memory, region) = guest(u64::from, options());
    // A gap at 20, where the run of neighbours ends.
    let gap = region.pin(PageRun::new(Gfn::new(20), 1)).unwrap();
    assert_eq!(region.compress(PageRun::new(Gfn::new(0), 100)), 99);
    assert_eq!(region.swap_out(PageRun::new(Gfn::new(100), 100)).unwrap(), 100);
    drop(gap);
    assert!(memory.read_page(5) == page(5));
    assert!(memory.read_page(25) == page(25));
    soon(|| states(&region, 0..16) == [State::Private; 16], &region);
    soon(|| states(&region, 21..32) == [State::Private; 11], &region);
    assert_eq!(states(&region, 16..20), [State::Compressed; 4]);
    assert!(memory.read_page(120) == page(120));
    soon(|| states(&region, 112..128) == [State::Private; 16], &region);
    assert_eq!(states(&region, 100..112), [State::Swapped; 12]);
    assert_eq!(states(&region, 128..200), [State::Swapped; 72]);
    let stats = region.stats();
    assert_eq!(
        (
            stats.pages_decompressed,
            stats.pages_swapped_in,
            stats.neighbours_swapped_in
        ),
        (27, 16, 15)
    );
    assert_pages(&memory, u64::from);
}

#[test]
fn neighbours_stay_away_while_growth_is_gated() {
    let (memory, region) = guest(u64::from, options());
    region.compress(PageRun::new(Gfn::new(0), 16));
    region.swap_out(PageRun::new(Gfn::new(16), 16)).unwrap();
    region.close_gate();
    region.add_credit(2);
    assert!(memory.read_page(3) == page(3) && memory.read_page(20) == page(20));
    // The handler has looked at the neighbours of the first when it serves the second.
    let stats = region.stats();
    assert_eq!((stats.compressed, stats.swapped), (15, 15));
    region.open_gate();
    assert_pages(&memory, u64::from);
}

#[test]
fn neighbours_that_cannot_be_read_stay_in_the_file() {
    let file = tempfile::tempfile().unwrap();
    let swap = Some(Swap::with_file(file.try_clone().unwrap(), PAGES).unwrap());
    let (memory, region) = guest(u64::from, Options { swap, ..options() });
    assert_eq!(region.swap_out(PageRun::new(Gfn::new(0), 16)).unwrap(), 16);
    file.write_all_at(b"flip", 7 * PAGE_SIZE as u64 + 100).unwrap();
    assert!(memory.read_page(3) == page(3));
    // The neighbours follow the page that was waited for: the reader is back before they are.
    let private = |pages| {
        states(&region, pages)
            .iter()
            .filter(|&&it| it == State::Private)
            .count()
    };
    soon(|| private(0..16) == 15, &region);
    let stats = region.stats();
    assert_eq!(
        (stats.swapped, stats.pages_lost, stats.pages_swapped_in),
        (1, 0, 15)
    );
    assert_eq!(region.state(Gfn::new(7)), State::Swapped);
    // The disk was only in a bad mood.
    file.write_all_at(&page(7)[100..104], 7 * PAGE_SIZE as u64 + 100)
        .unwrap();
    assert_pages(&memory, u64::from);
}

#[test]
fn a_direct_read_in_flight_lands_because_its_pages_are_marked() {
    let manager = manager();
    let (memory, region) = merged_guest(&manager, options());
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("disk");
    File::create(&path).unwrap().write_all(&page(777)).unwrap();
    let direct = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    let Ok(direct) = direct else {
        eprintln!("skipped: {} is on a file system without O_DIRECT", path.display());
        return;
    };
    let region = Arc::new(region);
    let stop = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while stop.load(Ordering::Relaxed) == 0 {
                region.unshare_all();
                region.scan_pass();
                region.compress(all());
            }
        });
        for round in 0..2000u32 {
            let at = round % PAGES;
            let pin = region.pin(PageRun::new(Gfn::new(at), 1)).unwrap();
            // SAFETY: reads into one mapped page.
            let got = unsafe { libc::pread(direct.as_raw_fd(), host_address(&memory, at), PAGE_SIZE, 0) };
            assert_eq!(got, PAGE_SIZE as isize, "{}", std::io::Error::last_os_error());
            drop(pin);
            assert!(
                memory.read_page(at) == page(777),
                "round {round}: the read was lost"
            );
            memory.write_page(at, &page(u64::from(at / 2)));
        }
        stop.store(1, Ordering::Relaxed);
    });
    assert_pages(&memory, |at| u64::from(at / 2));
}

#[test]
fn a_pinned_page_stays_where_it_is() {
    let (_memory, region) = guest(u64::from, options());
    let pin = region.pin(PageRun::new(Gfn::new(10), 5)).unwrap();
    assert_eq!(region.compress(all()), PAGES - 5);
    assert_eq!(region.state(Gfn::new(12)), State::Private);
    drop(pin);
    assert_eq!(region.compress(PageRun::new(Gfn::new(10), 5)), 5);
    assert!(region.pin(PageRun::new(Gfn::new(PAGES - 1), 2)).is_none());
}

/// Forks; the child waits until it is killed. Returns its id.
fn fork_and_wait() -> i32 {
    // SAFETY: the child only sleeps.
    match unsafe { libc::fork() } {
        0 => loop {
            // SAFETY: nothing is passed.
            unsafe { libc::pause() };
        },
        child => child,
    }
}

fn reap(child: i32) {
    // SAFETY: our own child.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
}

#[test]
fn a_fork_does_not_make_pages_immovable() {
    let (memory, region) = guest(u64::from, options());
    let child = fork_and_wait();
    assert_eq!(region.compress(all()), PAGES);
    assert_eq!(region.stats().pages_stuck, 0);
    reap(child);
    assert_pages(&memory, u64::from);
}

#[test]
fn pages_that_the_kernel_will_not_move_are_remembered_and_left() {
    let (memory, region) = guest(u64::from, options());
    // What a region never allows: a child that shares the pages.
    // SAFETY: only undoes MADV_DONTFORK.
    unsafe {
        libc::madvise(
            host_address(&memory, 0),
            PAGES as usize * PAGE_SIZE,
            libc::MADV_DOFORK,
        )
    };
    let child = fork_and_wait();
    // Written pages are copies of our own again: every other run of ten can be moved, so moves come up short.
    for at in (0..PAGES).filter(|at| (at / 10).is_multiple_of(2)) {
        memory.write_page(at, &page(u64::from(at)));
    }
    assert_eq!(region.compress(all()), PAGES / 2);
    assert_eq!(region.stats().pages_stuck, u64::from(PAGES / 2));
    reap(child);
    assert_pages(&memory, u64::from);
}

#[test]
fn the_pool_cannot_be_written_by_those_who_map_it() {
    let manager = manager();
    let port = manager.attach(PAGES).unwrap();
    let pool = port.session().pool.clone();
    assert!(pool.write_at(b"evil", 0).is_err());
    let (read_write, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping, if it were given.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGE_SIZE,
            read_write,
            shared,
            pool.as_raw_fd(),
            0,
        )
    };
    assert_eq!(mapped, libc::MAP_FAILED);
    assert_eq!(
        std::os::unix::fs::MetadataExt::mode(&pool.metadata().unwrap()) & 0o777,
        0o400
    );
    let path = format!("/proc/self/fd/{}", pool.as_raw_fd());
    let child = std::thread::spawn(move || {
        // Another user cannot open it anew; only this thread changes its user.
        // SAFETY: nothing is passed by reference.
        unsafe { libc::syscall(libc::SYS_setresuid, -1, 65534, -1) };
        File::options().write(true).open(path).map(drop)
    });
    assert!(
        child.join().unwrap().is_err(),
        "another user opened the pool for writing"
    );
}

#[test]
fn growth_waits_for_credit_while_the_gate_is_closed() {
    let manager = manager();
    let (memory, region) = merged_guest(&manager, options());
    region.release(PageRun::new(Gfn::new(500), 100), Release::Report);
    region.close_gate();
    let done = AtomicU32::new(0);
    let grows = |at: u32| {
        memory.store(at as usize * PAGE_SIZE, 1);
        done.fetch_add(1, Ordering::SeqCst);
    };
    let settled = |expected: u32| {
        let start = std::time::Instant::now();
        while done.load(Ordering::SeqCst) < expected && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(done.load(Ordering::SeqCst), expected);
    };
    std::thread::scope(|scope| {
        for at in [0, 10, 20, 510] {
            scope.spawn(move || grows(at));
        }
        settled(0);
        // Reads go on.
        assert!(memory.read_page(30) == page(15));
        region.add_credit(1);
        settled(1);
        region.add_credit(2);
        settled(3);
        region.open_gate();
        settled(4);
    });
    assert!(region.stats().faults_gated >= 4);
}

#[test]
fn zero_pages_and_stored_pages_wait_for_credit_too() {
    let (memory, region) = guest(u64::from, options());
    (500..600).for_each(|at| memory.write_page(at, &[0; PAGE_SIZE]));
    region.scan_pass();
    region.scan_pass();
    assert!(region.stats().zero >= 100, "{:?}", region.stats());
    region.compress(PageRun::new(Gfn::new(0), 16));
    region.swap_out(PageRun::new(Gfn::new(16), 16)).unwrap();
    region.close_gate();
    assert_eq!(region.stats().zero, 0);
    let done = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for at in [3, 20, 510] {
            let (memory, done) = (&memory, &done);
            scope.spawn(move || {
                memory.read_page(at);
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        soon(|| region.growth().waiting == 3, &region);
        assert_eq!(done.load(Ordering::SeqCst), 0);
        region.set_credit(3, region.growth().grown);
        soon(|| done.load(Ordering::SeqCst) == 3, &region);
    });
    let growth = region.growth();
    assert_eq!((growth.grown, growth.credit), (3, 0));
    region.open_gate();
    assert!(memory.read_page(510) == [0; PAGE_SIZE] && memory.read_page(3) == page(3));
}

#[test]
fn victims_are_cold_pages_first_then_any() {
    let (memory, region) = guest(u64::from, options());
    let count = |runs: &[PageRun]| runs.iter().map(|run| run.count).sum::<u32>();
    region.scan_pass();
    (10..PAGES).for_each(|at| memory.write_page(at, &page(u64::from(at))));
    region.scan_pass();
    assert_eq!(count(&region.cold_pages(100)), 10);
    let victims = region.victims(100);
    assert_eq!(count(&victims), 100);
    let holds = |at: u32| {
        victims
            .iter()
            .any(|run| (run.first.get()..run.first.get() + run.count).contains(&at))
    };
    assert!((0..10).all(holds), "{victims:?}");
}

/// Uses up mappings until only `left` more are allowed.
fn use_up_mappings(left: usize) {
    let limit: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    if limit > 1 << 18 {
        // Somebody has raised it, perhaps a bench that runs just now: four million mappings take minutes to count.
        eprintln!("skipped: vm.max_map_count is {limit}, too many mappings to use up");
        std::process::exit(0);
    }
    let used = std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .count();
    let count = limit.saturating_sub(used + left);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, of which every second page is then protected, so that each is a mapping of its own.
    unsafe {
        let area = libc::mmap(
            std::ptr::null_mut(),
            (count + 1) * PAGE_SIZE,
            libc::PROT_READ,
            flags,
            -1,
            0,
        );
        assert_ne!(area, libc::MAP_FAILED);
        for index in (1..count).step_by(2) {
            libc::mprotect(area.add(index * PAGE_SIZE), PAGE_SIZE, libc::PROT_NONE);
        }
    }
}

#[test]
fn merging_stops_cleanly_before_the_limit_of_mappings() {
    let status = in_child("merging_stops_cleanly_before_the_limit_of_mappings", || {
        use_up_mappings(150);
        // Every second page is unique, so each merge is a single page and costs two mappings.
        let (memory, region) = guest(
            |at| u64::from(if at.is_multiple_of(2) { at % 4 } else { at }),
            Options::default(),
        );
        region
            .connect(Box::new(manager().attach(PAGES).unwrap()))
            .unwrap();
        (0..10).for_each(|_| region.scan_pass());
        let stats = region.stats();
        assert!(stats.shared < 150, "{stats:#?}");
        assert!(
            stats.merges_without_mapping > 0 || stats.shared == 0,
            "{stats:#?}"
        );
        assert_eq!(stats.mapping_failures, 0, "{stats:#?}");
        assert_pages(&memory, |at| {
            u64::from(if at.is_multiple_of(2) { at % 4 } else { at })
        });
    });
    assert!(status.is_none_or(|status| status.success()));
}

#[test]
fn a_merge_that_the_kernel_refuses_is_undone() {
    let status = in_child("a_merge_that_the_kernel_refuses_is_undone", || {
        let content = |at: u32| u64::from(if at.is_multiple_of(2) { at % 4 } else { at });
        let (memory, region) = guest(content, options());
        region
            .connect(Box::new(manager().attach(PAGES).unwrap()))
            .unwrap();
        // Behind the region's back, after it has counted.
        use_up_mappings(8);
        (0..6).for_each(|_| region.scan_pass());
        let stats = region.stats();
        assert!(stats.mapping_failures > 0, "{stats:#?}");
        assert_pages(&memory, content);
        // Release and un-sharing at the limit must not corrupt either.
        for at in 0..PAGES {
            memory.store(at as usize * PAGE_SIZE, 0xdead);
        }
        region.release(PageRun::new(Gfn::new(0), 50), Release::Report);
        assert!((0..50).all(|at| memory.read_page(at) == [0; PAGE_SIZE]));
        region.unshare_all();
        assert!((50..PAGES).all(|at| memory.load(at as usize * PAGE_SIZE) == 0xdead));
        // Dropping the region needs mappings that this process no longer has.
        std::process::exit(0);
    });
    assert!(status.is_none_or(|status| status.success()));
}

#[test]
fn a_full_pool_only_ends_the_sharing_of_new_contents() {
    let manager = LocalManager::new(Domain::new(64).unwrap());
    let (memory, region) = guest(|at| u64::from(at / 2), Options::default());
    region.connect(Box::new(manager.attach(PAGES).unwrap())).unwrap();
    (0..5).for_each(|_| region.scan_pass());
    let stats = region.stats();
    assert!(stats.shared > 0 && stats.shared <= 128, "{stats:#?}");
    assert!(manager.with(|domain| domain.counters().refused_full).unwrap() > 0);
    assert_pages(&memory, |at| u64::from(at / 2));
}

#[test]
fn a_full_swap_file_leaves_pages_where_they_are() {
    let swap = Swap::create(&std::env::temp_dir(), 100).unwrap();
    let (memory, region) = guest(
        u64::from,
        Options {
            swap: Some(swap),
            ..Options::default()
        },
    );
    let error = region.swap_out(all()).unwrap_err();
    assert!(matches!(error, SwapOutError::Swap(_)), "{error}");
    assert_pages(&memory, u64::from);
    let (_memory, region) = guest(u64::from, Options::default());
    assert!(matches!(region.swap_out(all()), Err(SwapOutError::NoSwapFile)));
}

#[test]
fn a_corrupt_swap_file_gives_an_error_and_never_wrong_bytes() {
    let status = in_child("a_corrupt_swap_file_gives_an_error_and_never_wrong_bytes", || {
        let file = tempfile::tempfile().unwrap();
        let swap = Swap::with_file(file.try_clone().unwrap(), PAGES).unwrap();
        let (memory, region) = guest(
            u64::from,
            Options {
                swap: Some(swap),
                ..Options::default()
            },
        );
        assert_eq!(region.swap_out(PageRun::new(Gfn::new(0), 3)).unwrap(), 3);
        for at in 0..3 {
            file.write_all_at(b"flip", at * PAGE_SIZE as u64 + 100).unwrap();
        }
        region.bring_back(PageRun::new(Gfn::new(1), 2));
        assert_eq!((region.stats().lost, region.stats().pages_lost), (2, 2));
        // A guest that gives the broken page up gets a good one.
        region.release(PageRun::new(Gfn::new(1), 1), Release::Report);
        assert!(memory.read_page(1) == [0; PAGE_SIZE]);
        println!("now the fault");
        memory.read_page(0);
        unreachable!("a corrupt page was read");
    });
    if let Some(status) = status {
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
    }
}

#[test]
fn equal_pages_of_two_domains_are_never_shared() {
    let managers = [manager(), manager()];
    let guests: Vec<_> = managers
        .iter()
        .map(|manager| {
            let (memory, region) = guest(u64::from, Options::default());
            region.connect(Box::new(manager.attach(PAGES).unwrap())).unwrap();
            (memory, region)
        })
        .collect();
    for _ in 0..4 {
        guests.iter().for_each(|(_, region)| region.scan_pass());
    }
    for (memory, region) in &guests {
        assert_eq!(region.stats().shared, 0);
        assert_pages(memory, u64::from);
    }
}

/// A port that fails or lies as told.
struct Faulty {
    inner: LocalPort,
    fault: Fault,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// The manager is gone when bytes are published; it comes back at the next try.
    GoneAtPublish,
    /// It grants the slot after the right one.
    WrongSlot,
    /// It grants slots that do not exist.
    NoSuchSlot,
}

impl Port for Faulty {
    fn session(&self) -> &Session {
        self.inner.session()
    }
    fn report(&mut self, pages: &[Report], answers: &mut Vec<Answer>) -> Result<(), PortError> {
        self.inner.report(pages, answers)
    }
    fn publish(
        &mut self,
        pages: &[Report],
        bytes: &[Page],
        results: &mut Vec<Publication>,
    ) -> Result<(), PortError> {
        if self.fault == Fault::GoneAtPublish {
            results.clear();
            return Err(PortError::Gone);
        }
        self.inner.publish(pages, bytes, results)?;
        for result in results {
            if let Publication::Granted(slot) = result {
                *slot = match self.fault {
                    Fault::WrongSlot => Slot::new(slot.get() ^ 1),
                    _ => Slot::new(u32::MAX - 7),
                };
            }
        }
        Ok(())
    }
    fn offers(&mut self, offers: &mut Vec<Offer>) -> Result<(), PortError> {
        self.inner.offers(offers)
    }
    fn offers_ready(&self) -> BorrowedFd<'_> {
        self.inner.offers_ready()
    }
    fn withdraw(&mut self, pages: &[Gfn]) -> Result<(), PortError> {
        self.inner.withdraw(pages)
    }
    fn claim(
        &mut self,
        generation: PoolGeneration,
        slots: &[Slot],
        answers: &mut Vec<Answer>,
    ) -> Result<(), PortError> {
        self.inner.claim(generation, slots, answers)
    }

    fn release(&mut self, generation: PoolGeneration, slots: &[Slot]) -> Result<(), PortError> {
        self.inner.release(generation, slots)
    }
    fn reconnect(&mut self, held: &[Slot]) -> Result<Reconnected, PortError> {
        self.fault = Fault::WrongSlot;
        self.inner.reconnect(held)
    }
}

#[test]
fn a_manager_that_fails_or_lies_never_changes_a_page() {
    for fault in [Fault::GoneAtPublish, Fault::WrongSlot, Fault::NoSuchSlot] {
        let manager = manager();
        let (memory, region) = guest(|at| u64::from(at / 2), Options::default());
        let inner = manager.attach(PAGES).unwrap();
        region.connect(Box::new(Faulty { inner, fault })).unwrap();
        (0..6).for_each(|_| region.scan_pass());
        if fault == Fault::GoneAtPublish {
            assert!(region.stats().port_failures > 0);
        }
        assert_pages(&memory, |at| u64::from(at / 2));
    }
}

#[test]
fn pages_of_a_manager_that_is_gone_stay_and_move_to_the_next() {
    let manager = manager();
    let (memory, region) = merged_guest(&manager, options());
    manager.stop();
    (0..2).for_each(|_| region.scan_pass());
    assert_eq!(region.stats().shared, u64::from(PAGES));
    assert_pages(&memory, |at| u64::from(at / 2));
    manager.restart(Domain::new(1 << 16).unwrap());
    // The scanner notices that the manager is gone when it next has something to say.
    memory.write_page(0, &page(9999));
    (0..30).for_each(|_| region.scan_pass());
    let references = manager.with(|domain| domain.sizes().references).unwrap();
    assert!(
        references >= u64::from(PAGES) - 4,
        "{references} references, {:#?}",
        region.stats()
    );
    assert_pages(&memory, |at| if at == 0 { 9999 } else { u64::from(at / 2) });
}

#[test]
fn memory_that_cannot_be_managed_is_refused_with_a_reason() {
    let memory = AnonymousMemory::new(PAGES).unwrap();
    let twice = vec![memory.range(Gfn::new(0)), memory.range(Gfn::new(100))];
    assert!(
        Region::adopt(twice, Options::default())
            .unwrap_err()
            .to_string()
            .contains("overlap")
    );
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGE_SIZE as u64).unwrap();
    let (rw, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
    // SAFETY: a new mapping that stays; only the region is told of it.
    let range = unsafe {
        let mapped = libc::mmap(std::ptr::null_mut(), PAGE_SIZE, rw, private, file.as_raw_fd(), 0);
        assert_ne!(mapped, libc::MAP_FAILED);
        page_share::MemoryRange::adopt(Gfn::new(0), std::ptr::NonNull::new(mapped.cast()).unwrap(), 1)
    };
    let error = Region::adopt(vec![range], Options::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("only private anonymous memory"), "{error}");
}
