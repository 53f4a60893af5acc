//! A region ends while its swap file cannot be read.
#![allow(unsafe_code)]
// UNSAFETY: a descriptor of a test is replaced, and a system call reads managed memory, so that memory that is broken
// answers with an error.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::{AnonymousMemory, Gfn, Options, PAGE_SIZE, Page, PageRun, Region, State, Swap};

const PAGES: u32 = 128;

/// Of those, in the swap file.
const SWAPPED: u32 = 64;

fn content(at: u32) -> Page {
    std::array::from_fn(|byte| (byte as u32 * 7 + at + 1) as u8 | 1)
}

/// A guest whose first `swapped` pages are in `file`.
fn swapped_guest(file: File, swapped: u32) -> (AnonymousMemory, Region) {
    let memory = AnonymousMemory::new(PAGES).unwrap();
    (0..PAGES).for_each(|at| memory.write_page(at, &content(at)));
    let options = Options {
        swap: Some(Swap::with_file(file, PAGES).unwrap()),
        ..Options::default()
    };
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
    let out = region.swap_out(PageRun::new(Gfn::new(0), swapped)).unwrap();
    assert_eq!(out, swapped);
    (memory, region)
}

/// Reads a page by way of a system call, which waits for it as any access does. `None` when it is broken.
fn read(memory: &AnonymousMemory, at: u32) -> Option<Page> {
    // SAFETY: a descriptor of its own.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"page".as_ptr(), libc::MFD_CLOEXEC)) };
    let address = (memory.address() + at as usize * PAGE_SIZE) as *const libc::c_void;
    // SAFETY: the kernel reads one mapped page and takes its faults.
    let wrote = unsafe { libc::write(file.as_raw_fd(), address, PAGE_SIZE) };
    let mut page = [0; PAGE_SIZE];
    (wrote == PAGE_SIZE as isize).then(|| file.read_exact_at(&mut page, 0).unwrap())?;
    Some(page)
}

fn soon(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(300), "never {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn pages_of_a_disk_that_fails_are_broken_when_their_region_ends_and_never_read_zero() {
    let file = tempfile::tempfile().unwrap();
    let descriptor = file.as_raw_fd();
    let (memory, mut region) = swapped_guest(file, SWAPPED);
    region.patience = Duration::from_millis(200);
    let write_only = File::options().write(true).open("/dev/null").unwrap();
    // SAFETY: replaces a descriptor of this test's by another of its own: every read fails from now on.
    unsafe { libc::dup2(write_only.as_raw_fd(), descriptor) };
    std::thread::scope(|scope| {
        let memory = &memory;
        let readers = [3, 20, 21, 40, 63].map(|at| scope.spawn(move || (at, read(memory, at))));
        soon("failed", || region.stats().swap_reads_failed > 50);
        drop(region);
        for (at, read) in readers.map(|reader| reader.join().unwrap()) {
            assert!(
                read.is_none_or(|page| page == content(at)),
                "page {at} was invented"
            );
        }
    });
    for at in 0..PAGES {
        let read = read(&memory, at);
        assert!(read.is_some() || at < SWAPPED, "page {at} is broken");
        assert!(
            read.is_none_or(|page| page == content(at)),
            "page {at} was invented"
        );
    }
}

#[test]
fn a_page_that_is_being_read_when_its_region_ends_is_waited_for() {
    let (memory, mut region) = swapped_guest(tempfile::tempfile().unwrap(), 16);
    region.patience = Duration::from_millis(100);
    let (guest, cold) = (Arc::clone(&region.guest), Arc::clone(&region.cold));
    let read_so_far = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // The swap thread waits for this as it does for a disk that does not answer.
        let stalled = cold.swap();
        let reader = scope.spawn(|| {
            let page = read(&memory, 3);
            read_so_far.store(true, Ordering::SeqCst);
            page
        });
        soon("being read", || {
            (0..16).all(|at| guest.table().state(Gfn::new(at)) == State::InTransit)
        });
        drop(region);
        assert!(
            !read_so_far.load(Ordering::SeqCst),
            "nothing could be read so far"
        );
        drop(stalled);
        let page = reader.join().unwrap();
        assert!(page.is_some_and(|page| page == content(3)), "page 3 was invented");
    });
    assert!((0..PAGES).all(|at| read(&memory, at) == Some(content(at))));
}
