//! What a region takes over, what it refuses with a reason and without having changed anything, and what becomes of memory
//! that its owner locks afterwards.
#![allow(unsafe_code)]
// UNSAFETY: memory that is mapped, locked and watched in wrong ways on purpose.

mod contents;
mod managed_guest;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use contents::page;
use managed_guest::*;
use page_share::{
    AdoptError, AnonymousMemory, Blocks, Gfn, MemoryRange, Options, PAGE_SIZE, PageRun, Region, Release,
};

/// A new mapping of `pages` pages, never unmapped.
fn map(pages: usize, flags: i32, fd: i32) -> *mut libc::c_void {
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    unsafe { libc::mmap(std::ptr::null_mut(), pages * PAGE_SIZE, rw, flags, fd, 0) }
}

fn anonymous(pages: usize) -> *mut libc::c_void {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let mapped = map(pages, flags, -1);
    assert_ne!(mapped, libc::MAP_FAILED);
    mapped
}

/// `pages` pages at `address`, and `offset` bytes more, from guest page `first` on.
fn range(first: u32, address: *mut libc::c_void, offset: usize, pages: u32) -> MemoryRange {
    let start = NonNull::new(address.cast::<u8>()).unwrap();
    // SAFETY: memory that stays mapped and that only a region is told of, as far as it is any.
    unsafe { MemoryRange::adopt(Gfn::new(first), start.add(offset), pages) }
}

fn refusal(ranges: Vec<MemoryRange>, blocks: Blocks) -> AdoptError {
    let options = Options::default().with_blocks(blocks);
    let error = Region::adopt(ranges, options).unwrap_err();
    println!("{error}");
    error
}

const BOTH: [Blocks; 2] = [Blocks::Managed, Blocks::Huge];

#[test]
fn ranges_that_are_no_ones_memory_are_refused() {
    for blocks in BOTH {
        let memory = AnonymousMemory::new(1024).unwrap();
        let at = memory.address() as *mut libc::c_void;
        assert!(matches!(refusal(vec![], blocks), AdoptError::Ranges));
        assert!(matches!(
            refusal(vec![memory.range(Gfn::new(0)), range(1024, at, 0, 0)], blocks),
            AdoptError::Ranges
        ));
        assert!(matches!(
            refusal(vec![range(0, at, 0, 512), range(511, anonymous(9), 0, 9)], blocks),
            AdoptError::Ranges
        ));
        assert!(matches!(
            refusal(
                vec![range(0, at, 0, 512), range(1024, at, 511 * PAGE_SIZE, 512)],
                blocks
            ),
            AdoptError::SameMemory { .. }
        ));
        for first in [u32::MAX, u32::MAX - 1022] {
            let error = refusal(vec![memory.range(Gfn::new(first))], blocks);
            assert!(matches!(error, AdoptError::TooHigh { .. }));
        }
        for offset in [1, 8, 2048, 4095] {
            let error = refusal(vec![range(0, at, offset, 512)], blocks);
            assert!(matches!(error, AdoptError::Unaligned { .. }));
        }
        // Nothing was changed: the memory can be adopted.
        drop(Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap());
    }
}

#[test]
fn memory_that_is_not_private_and_anonymous_is_refused() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let file = file.as_raw_fd();
    let (private, shared) = (libc::MAP_PRIVATE, libc::MAP_SHARED);
    let kinds = [
        ("a private file mapping", private, file),
        ("a shared file mapping", shared, file),
        ("shared anonymous memory", shared | libc::MAP_ANONYMOUS, -1),
        (
            "huge pages",
            private | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB,
            -1,
        ),
    ];
    for (kind, flags, fd) in kinds {
        let mapped = map(512, flags, fd);
        if mapped == libc::MAP_FAILED {
            // Huge pages have to be set aside by root first.
            eprintln!("skipped in part: {kind} cannot be had here");
            continue;
        }
        let error = refusal(vec![range(0, mapped, 0, 16)], Blocks::Managed);
        assert!(matches!(error, AdoptError::WrongMemory { .. }), "{kind}: {error}");
    }
    // Half of it is memory, half is read-only, and half is not there.
    for what in [libc::PROT_READ, libc::PROT_NONE, -1] {
        let memory = anonymous(32);
        // SAFETY: memory of this test's own.
        unsafe {
            let half = memory.add(16 * PAGE_SIZE);
            match what {
                -1 => libc::munmap(half, 16 * PAGE_SIZE),
                access => libc::mprotect(half, 16 * PAGE_SIZE, access),
            }
        };
        let error = refusal(vec![range(0, memory, 0, 32)], Blocks::Managed);
        assert!(matches!(error, AdoptError::WrongMemory { .. }), "{error}");
    }
}

#[test]
fn locked_memory_is_refused() {
    for blocks in BOTH {
        let memory = AnonymousMemory::new(1024).unwrap();
        memory.write_page(700, &page(7));
        let (lock, unlock) = (host_address(&memory, 700), host_address(&memory, 700));
        // SAFETY: locks a page that is mapped.
        assert_eq!(unsafe { libc::mlock(lock, PAGE_SIZE) }, 0);
        let error = refusal(vec![memory.range(Gfn::new(0))], blocks);
        assert!(matches!(error, AdoptError::Locked { .. }));
        // SAFETY: the same page.
        assert_eq!(unsafe { libc::munlock(unlock, PAGE_SIZE) }, 0);
        drop(Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap());
        assert!(memory.read_page(700) == page(7));
    }
}

#[test]
fn a_process_that_locks_all_its_memory_is_refused() {
    let name = "a_process_that_locks_all_its_memory_is_refused";
    let status = in_child(name, || {
        for flags in [
            libc::MCL_CURRENT,
            libc::MCL_FUTURE,
            libc::MCL_FUTURE | libc::MCL_ONFAULT,
        ] {
            let memory = AnonymousMemory::new(1024).unwrap();
            // SAFETY: no memory is passed.
            assert_eq!(unsafe { libc::mlockall(flags) }, 0);
            let error = refusal(vec![memory.range(Gfn::new(0))], Blocks::Managed);
            assert!(matches!(error, AdoptError::Locked { .. } | AdoptError::AllLocked));
            // SAFETY: as above.
            assert_eq!(unsafe { libc::munlockall() }, 0);
            drop(Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap());
        }
    });
    assert!(status.is_none_or(|status| status.success()), "{status:?}");
}

/// A userfaultfd that watches `bytes` at `start` for missing pages.
fn watched_by_another(start: *mut libc::c_void, bytes: usize) -> OwnedFd {
    // UFFDIO_API and UFFDIO_REGISTER of linux/userfaultfd.h.
    let (api, register) = (0xC018_AA3F, 0xC020_AA00);
    // SAFETY: system calls with structures of the sizes they expect, and a descriptor that they return.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) as i32;
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        let mut ask = [0xAA_u64, 0, 0];
        assert_eq!(libc::ioctl(fd, api, ask.as_mut_ptr()), 0);
        let mut ask = [start as u64, bytes as u64, 1, 0];
        assert_eq!(libc::ioctl(fd, register, ask.as_mut_ptr()), 0);
        OwnedFd::from_raw_fd(fd)
    }
}

#[test]
fn memory_that_another_userfaultfd_watches_is_refused() {
    for blocks in BOTH {
        let memory = AnonymousMemory::new(1024).unwrap();
        memory.write_page(3, &page(3));
        let other = watched_by_another(host_address(&memory, 600), 8 * PAGE_SIZE);
        let error = refusal(vec![memory.range(Gfn::new(0))], blocks);
        assert!(matches!(error, AdoptError::Watched { .. }));
        // It watches still: a second region is refused as well.
        let error = refusal(vec![memory.range(Gfn::new(0))], blocks);
        assert!(matches!(error, AdoptError::Watched { .. }));
        drop(other);
        drop(Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap());
        assert!(memory.read_page(3) == page(3));
    }
}

/// Hot-plugged memory: page numbers follow each other, addresses do not.
#[test]
fn ranges_that_follow_each_other_by_number_only_are_shared_like_one() {
    const PAGES: u32 = 600;
    let manager = manager();
    let make = || {
        let memories = [0, 1, 2].map(|_| AnonymousMemory::new(PAGES).unwrap());
        for (memory, number) in memories.iter().zip(0..) {
            (0..PAGES).for_each(|at| memory.write_page(at, &page(u64::from(number * PAGES + at))));
        }
        // The second lies before the first.
        let order = [1, 0, 2];
        let ranges = order.iter().zip(0..);
        let ranges = ranges.map(|(&which, number)| memories[which as usize].range(Gfn::new(number * PAGES)));
        let region = Region::adopt(ranges.collect(), options()).unwrap();
        region
            .connect(Box::new(manager.attach(region.page_limit()).unwrap()))
            .unwrap();
        (memories, region)
    };
    let guests = [make(), make()];
    let check = |when: &str| {
        for (memories, _) in &guests {
            for (memory, number) in memories.iter().zip(0..) {
                for at in 0..PAGES {
                    let expected = page(u64::from(number * PAGES + at));
                    assert!(
                        memory.read_page(at) == expected,
                        "{when}: range {number} page {at}"
                    );
                }
            }
        }
    };
    let all = PageRun::new(Gfn::new(0), 3 * PAGES);
    for round in 0..2 {
        for _ in 0..8 {
            for (_, region) in &guests {
                region.prioritize(PageRun::new(Gfn::new(PAGES - 50), 100));
                region.scan_pass();
            }
        }
        for (_, region) in &guests {
            assert_eq!(
                region.stats().shared,
                u64::from(all.count),
                "{:#?}",
                region.stats()
            );
        }
        check("merged");
        guests.iter().for_each(|(_, region)| {
            region.unshare_all();
            assert!(region.start_sample(300) > 0);
            region.compress(PageRun::new(Gfn::new(PAGES - 70), 140));
            region
                .swap_out(PageRun::new(Gfn::new(2 * PAGES - 70), 140))
                .unwrap();
            region.close_gate();
            region.open_gate();
        });
        check(&format!("round {round}"));
    }
}

/// What is left of a guest when its owner locks its memory behind the region's back: nothing is moved any more, and nothing
/// is lost.
fn locked_afterwards(lock: impl Fn(&AnonymousMemory)) {
    // The first half is merged.
    let content = |at: u32| u64::from(if at < 300 { at / 2 } else { at + 1000 });
    let manager = manager();
    let (memory, region) = guest(content, options());
    region.connect(Box::new(manager.attach(PAGES).unwrap())).unwrap();
    (0..4).for_each(|_| region.scan_pass());
    assert_eq!(region.stats().shared, 300);
    memory.write_page(1, &page(content(1)));
    region.compress(PageRun::new(Gfn::new(300), 60));
    region.swap_out(PageRun::new(Gfn::new(400), 60)).unwrap();
    assert!(region.start_sample(50) > 0);
    lock(&memory);
    assert_pages(&memory, content);
    region.finish_sample();
    (0..4).for_each(|_| region.scan_pass());
    region.compress(all());
    region.swap_out(all()).unwrap();
    region.start_sample(100);
    region.finish_sample();
    assert!(region.stats().pages_stuck > 0, "{:#?}", region.stats());
    assert_pages(&memory, content);
    for why in [Release::Balloon, Release::Report] {
        let first = if why == Release::Balloon { 0 } else { 400 };
        region.release(PageRun::new(Gfn::new(first), 50), why);
        (first..first + 50).for_each(|at| assert!(memory.read_page(at) == [0; PAGE_SIZE], "page {at}"));
        (first..first + 50).for_each(|at| memory.write_page(at, &page(content(at))));
    }
    region.close_gate();
    region.open_gate();
    region.unshare_all();
    (0..2).for_each(|_| region.scan_pass());
    assert_pages(&memory, content);
    assert_eq!(region.stats().pages_lost, 0);
    drop(region);
    assert_pages(&memory, content);
}

#[test]
fn memory_that_is_locked_later_is_left_where_it_is() {
    let status = in_child("memory_that_is_locked_later_is_left_where_it_is", || {
        locked_afterwards(|memory| {
            // SAFETY: locks memory that is mapped.
            let locked = unsafe { libc::mlock(host_address(memory, 0), PAGES as usize * PAGE_SIZE) };
            assert_eq!(locked, 0, "{}", std::io::Error::last_os_error());
        });
    });
    assert!(status.is_none_or(|status| status.success()), "{status:?}");
}

#[test]
fn a_process_that_locks_all_its_memory_later_loses_nothing() {
    let status = in_child("a_process_that_locks_all_its_memory_later_loses_nothing", || {
        locked_afterwards(|_| {
            // SAFETY: no memory is passed.
            let locked = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) };
            assert_eq!(locked, 0, "{}", std::io::Error::last_os_error());
        });
    });
    assert!(status.is_none_or(|status| status.success()), "{status:?}");
}

#[test]
fn a_sampled_page_whose_place_is_locked_meanwhile_is_copied_back() {
    let status = in_child(
        "a_sampled_page_whose_place_is_locked_meanwhile_is_copied_back",
        || {
            let (memory, region) = guest(u64::from, options());
            assert!(region.start_sample(50) > 0);
            let (start, length) = (host_address(&memory, 0), PAGES as usize * PAGE_SIZE);
            // What is missing stays missing, so no touch brings it back before the end of the sample does.
            // SAFETY: locks memory that is mapped.
            let locked = unsafe { libc::mlock2(start, length, libc::MLOCK_ONFAULT) };
            assert_eq!(locked, 0, "{}", std::io::Error::last_os_error());
            assert_eq!(region.finish_sample().touched, 0);
            assert_eq!(region.stats().sampled, 0);
            assert_pages(&memory, u64::from);
        },
    );
    assert!(status.is_none_or(|status| status.success()), "{status:?}");
}
