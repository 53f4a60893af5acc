//! Pages in the compressed store and the swap file: how they come back, and what happens when they cannot.
#![allow(unsafe_code)]
// UNSAFETY: raw reads of managed memory.

mod contents;
mod managed_guest;

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicU32, Ordering};

use contents::page;
use managed_guest::*;
use page_share::{
    AnonymousMemory, Gfn, Options, PAGE_SIZE, PageRun, Region, Release, State, Swap, SwapOutError,
};

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
fn memory_of_compressed_pages_that_are_released_goes_back_at_once() {
    const MANY: u32 = 4096;
    let memory = AnonymousMemory::new(MANY).unwrap();
    for at in 0..MANY {
        // Half of it is noise.
        let mut bytes = [0; PAGE_SIZE];
        let mut noise = u64::from(at) + 1;
        for word in &mut bytes.as_chunks_mut::<8>().0[..256] {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            *word = noise.to_le_bytes();
        }
        memory.write_page(at, &bytes);
    }
    let options = Options::default().with_store_bytes(64 << 20);
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
    let all = PageRun::new(Gfn::new(0), MANY);
    assert_eq!(region.compress(all), MANY);
    let full = region.stats().store_bytes;
    assert!(full > 6 << 20, "{full}");
    region.release(all, Release::Balloon);
    let left = region.stats().store_bytes;
    assert!(left < 3 << 20, "{left} of {full} left");
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
    let (memory, region) = guest(u64::from, options().with_swap(swap));
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
fn a_disk_that_fails_for_a_while_loses_no_page() {
    let file = tempfile::tempfile().unwrap();
    let descriptor = file.as_raw_fd();
    let good = file.try_clone().unwrap();
    let swap = Some(Swap::with_file(file, PAGES).unwrap());
    let (memory, region) = guest(u64::from, options().with_swap(swap));
    assert_eq!(region.swap_out(PageRun::new(Gfn::new(0), 64)).unwrap(), 64);
    // Every read fails from now on, as one of a disk that is gone does.
    let write_only = std::fs::File::options().write(true).open("/dev/null").unwrap();
    // SAFETY: replaces a descriptor of this test's by another of its own.
    unsafe { libc::dup2(write_only.as_raw_fd(), descriptor) };
    let done = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for at in [3, 20, 21, 40] {
            let (memory, done) = (&memory, &done);
            scope.spawn(move || {
                assert!(memory.read_page(at) == page(u64::from(at)), "page {at}");
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        soon(|| region.stats().swap_reads_failed > 50, &region);
        assert_eq!(region.bring_back(PageRun::new(Gfn::new(48), 16)), 0);
        let stats = region.stats();
        assert_eq!(done.load(Ordering::SeqCst), 0);
        assert_eq!((stats.lost, stats.pages_lost), (0, 0));
        // SAFETY: as above.
        unsafe { libc::dup2(good.as_raw_fd(), descriptor) };
        soon(|| done.load(Ordering::SeqCst) == 4, &region);
    });
    assert_pages(&memory, u64::from);
    assert_eq!(region.stats().pages_lost, 0);
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

#[test]
fn a_full_swap_file_leaves_pages_where_they_are() {
    let swap = Swap::create(&std::env::temp_dir(), 100).unwrap();
    let (memory, region) = guest(u64::from, Options::default().with_swap(swap));
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
        let (memory, region) = guest(u64::from, Options::default().with_swap(swap));
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
