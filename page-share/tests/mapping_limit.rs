//! What happens where the kernel allows no more mappings.
#![allow(unsafe_code)]
// UNSAFETY: address space that is used up on purpose.

mod contents;
mod managed_guest;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use contents::page;
use managed_guest::*;
use page_share::{
    AdoptError, AnonymousMemory, Blocks, Gfn, Options, PAGE_SIZE, PageRun, Region, Release, Stats,
};

/// Uses up mappings until only `left` more are allowed.
fn use_up_mappings(left: usize) {
    let limit: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    if limit > 1 << 18 {
        // It was raised, perhaps by a bench that runs just now: four million mappings take minutes to count.
        eprintln!("skipped: vm.max_map_count is {limit}, too many mappings to use up");
        std::process::exit(0);
    }
    let used = std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .count();
    let count = limit.saturating_sub(used + left);
    if count == 0 {
        return;
    }
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

/// Runs that are worth more come first, for four passes.
#[test]
fn single_pages_are_merged_in_the_end_where_mappings_are_scarce() {
    let status = in_child(
        "single_pages_are_merged_in_the_end_where_mappings_are_scarce",
        || {
            const MANY: u32 = 4000;
            // Fewer than two for each of the pages, and more than are kept for long runs.
            use_up_mappings(1500);
            let content = |at: u32| u64::from(if at.is_multiple_of(2) { at % 4 } else { at });
            let memory = AnonymousMemory::new(MANY).unwrap();
            (0..MANY).for_each(|at| memory.write_page(at, &page(content(at))));
            let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
            region.connect(Box::new(manager().attach(MANY).unwrap())).unwrap();
            (0..12).for_each(|_| region.scan_pass());
            let stats = region.stats();
            assert!(stats.shared > 100, "{stats:#?}");
            assert!(stats.merges_without_mapping > 0, "{stats:#?}");
            assert!((0..MANY).all(|at| memory.read_page(at) == page(content(at))));
        },
    );
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
        drop(region);
        assert!((50..PAGES).all(|at| memory.load(at as usize * PAGE_SIZE) == 0xdead));
    });
    assert!(status.is_none_or(|status| status.success()));
}

/// Huge blocks for the tests below.
const BLOCKS: u32 = 24;

/// Words of each page that writers look at and change.
const WORDS: [usize; 3] = [0, 300, 511];

/// Writes to every page of `pages`, over and over, and checks what it wrote before. Returns the last value of each page.
fn rewrite(memory: &AnonymousMemory, pages: std::ops::Range<u32>, stop: &AtomicBool) -> Vec<(u32, u64)> {
    let mut last: Vec<(u32, u64)> = pages.map(|at| (at, 0)).collect();
    while !stop.load(Ordering::Relaxed) {
        for (at, value) in &mut last {
            for word in WORDS {
                let address = *at as usize * PAGE_SIZE + word * 8;
                assert_eq!(memory.load(address), *value, "page {at:#x} word {word}");
                memory.store(address, *value + 1);
            }
            *value += 1;
        }
    }
    last
}

#[test]
fn a_block_for_which_no_mapping_is_left_stays_whole() {
    let status = in_child("a_block_for_which_no_mapping_is_left_stays_whole", || {
        let memory = AnonymousMemory::new(BLOCKS * 512).unwrap();
        let options = Options::default()
            .with_blocks(Blocks::Huge)
            .with_store_bytes(8 << 20);
        let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
        let (stop, begun) = (AtomicBool::new(false), Barrier::new(4));
        let (mut before, mut full) = (Stats::default(), Stats::default());
        let last: Vec<(u32, u64)> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..3)
                .map(|writer| {
                    let (memory, stop, begun) = (&memory, &stop, &begun);
                    let third = BLOCKS * 512 / 3;
                    scope.spawn(move || {
                        begun.wait();
                        rewrite(memory, writer * third..(writer + 1) * third, stop)
                    })
                })
                .collect();
            // A thread that finds no mapping for its stacks ends the process.
            begun.wait();
            // Beyond the spare ones, room for a few blocks.
            use_up_mappings(32);
            // One block in four, so that none is a neighbour of another: each costs two mappings.
            for block in (0..BLOCKS).step_by(4) {
                region.split_run(PageRun::new(Gfn::new(block * 512), 1));
                region.scan_pass();
                region.compress(PageRun::new(Gfn::new(block * 512), 64));
            }
            before = region.stats();
            // Whatever else uses mappings up, also those that were spare: blocks between are left whole ...
            use_up_mappings(0);
            for block in (2..BLOCKS).step_by(4) {
                region.split_run(PageRun::new(Gfn::new(block * 512), 1));
            }
            full = region.stats();
            // ... and whatever is tried at the limit harms nothing.
            for block in 0..BLOCKS {
                region.compress(PageRun::new(Gfn::new(block * 512), 64));
                region.rebuild_block(Gfn::new(block * 512));
                region.split_blocks(1);
            }
            region.scan_pass();
            region.close_gate();
            region.open_gate();
            stop.store(true, Ordering::Relaxed);
            writers
                .into_iter()
                .flat_map(|writer| writer.join().unwrap())
                .collect()
        });
        assert!(before.blocks_split > 0, "{before:#?}");
        assert!(full.splits_refused > 0 && full.huge > 0, "{full:#?}");
        let check = |when: &str| {
            for &(at, value) in &last {
                for word in WORDS {
                    let found = memory.load(at as usize * PAGE_SIZE + word * 8);
                    assert_eq!(found, value, "page {at:#x} word {word} {when}");
                }
            }
        };
        check("while it is managed");
        drop(region);
        check("afterwards");
    });
    assert!(status.is_none_or(|status| status.success()), "{status:?}");
}

#[test]
fn a_region_that_is_dropped_without_a_mapping_left_loses_nothing() {
    let status = in_child(
        "a_region_that_is_dropped_without_a_mapping_left_loses_nothing",
        || {
            // No two pages of a pool lie side by side, so each is a mapping that only another one can replace.
            let content = |at: u32| u64::from(if at.is_multiple_of(2) { at % 4 } else { at });
            let (memory, region) = guest(content, options());
            region
                .connect(Box::new(manager().attach(PAGES).unwrap()))
                .unwrap();
            (0..6).for_each(|_| region.scan_pass());
            assert!(region.stats().shared > 200, "{:#?}", region.stats());
            region.compress(PageRun::new(Gfn::new(1), 1));
            use_up_mappings(0);
            drop(region);
            assert_pages(&memory, content);
            (0..PAGES).for_each(|at| memory.write_page(at, &page(u64::from(at) + 7)));
            assert_pages(&memory, |at| u64::from(at) + 7);
        },
    );
    assert!(status.is_none_or(|status| status.success()), "{status:?}");
}

#[test]
fn memory_is_adopted_or_refused_where_no_mapping_is_left() {
    let status = in_child("memory_is_adopted_or_refused_where_no_mapping_is_left", || {
        let memories = [200, 80, 60, 48, 40, 20, 4, 0].map(|left| {
            let memory = AnonymousMemory::new(PAGES).unwrap();
            (0..PAGES).for_each(|at| memory.write_page(at, &page(u64::from(at))));
            (left, memory)
        });
        for (left, memory) in memories {
            use_up_mappings(left);
            let adopted = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default());
            println!(
                "{left} left: {:?}",
                adopted.as_ref().err().map(ToString::to_string)
            );
            assert!(left != 200 || adopted.is_ok());
            assert!(left > 20 || matches!(adopted, Err(AdoptError::NoMappings { .. })));
            drop(adopted);
            assert_pages(&memory, u64::from);
        }
    });
    assert!(status.is_none_or(|status| status.success()), "{status:?}");
}
