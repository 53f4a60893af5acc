//! What happens where the kernel allows no more mappings.
#![allow(unsafe_code)]
// UNSAFETY: address space that is used up on purpose.

mod contents;
mod managed_guest;

use managed_guest::*;
use page_share::{Gfn, Options, PAGE_SIZE, PageRun, Release};

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
