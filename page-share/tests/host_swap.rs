//! On a host that swaps: what the kernel has put into its own swap space is what it was, and counts as what it is.
//!
//! Needs root, a file system that swap files can be on, and a moment in which the kernel takes pages when it is asked to.
#![allow(unsafe_code)]
// UNSAFETY: swapon(2), swapoff(2), and advice to page memory out.

mod contents;
mod managed_guest;

use std::ffi::CString;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use contents::page;
use managed_guest::*;
use page_share::{AnonymousMemory, Options, PAGE_SIZE, Region};

/// Pages of the swap file.
const SWAP_PAGES: u32 = 4096;

/// A swap file that the kernel uses for as long as this exists.
struct HostSwap {
    path: CString,
    _directory: tempfile::TempDir,
}

impl HostSwap {
    fn on() -> Option<Self> {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("swap");
        let mut file = std::fs::File::create(&path).unwrap();
        file.set_permissions(std::fs::Permissions::from_mode(0o600))
            .unwrap();
        // No holes, and the header of include/linux/swap.h: version, last page, and a signature at the first page's end.
        (0..SWAP_PAGES).for_each(|_| file.write_all(&[0; PAGE_SIZE]).unwrap());
        for (at, value) in [(1024, 1u32), (1028, SWAP_PAGES - 1)] {
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(&value.to_le_bytes()).unwrap();
        }
        file.write_all_at(b"SWAPSPACE2", PAGE_SIZE as u64 - 10).unwrap();
        file.sync_all().unwrap();
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: a path of this test's own.
        let on = unsafe { libc::swapon(path.as_ptr(), 0) };
        if on != 0 {
            let error = std::io::Error::last_os_error();
            println!("skipped: a swap file cannot be switched on here: {error}");
            return None;
        }
        Some(Self {
            path,
            _directory: directory,
        })
    }
}

impl Drop for HostSwap {
    fn drop(&mut self) {
        // SAFETY: a path of this test's own.
        let off = unsafe { libc::swapoff(self.path.as_ptr()) };
        assert_eq!(off, 0, "{}", std::io::Error::last_os_error());
    }
}

/// Asks the kernel to page the guest's memory out.
fn page_out(memory: &AnonymousMemory) {
    let bytes = PAGES as usize * PAGE_SIZE;
    // SAFETY: advice; what pages hold stays.
    let advised = unsafe { libc::madvise(host_address(memory, 0), bytes, libc::MADV_PAGEOUT) };
    assert_eq!(advised, 0, "{}", std::io::Error::last_os_error());
}

/// The same, for a minute until it takes some. How many pages it took.
fn page_out_some(memory: &AnonymousMemory) -> usize {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        page_out(memory);
        let swapped = in_swap(memory);
        if swapped > 0 {
            return swapped;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("skipped in part: the kernel pages nothing out");
    0
}

/// Pages that are in the kernel's swap space, or look like it.
fn in_swap(memory: &AnonymousMemory) -> usize {
    let mut entries = vec![[0; 8]; PAGES as usize];
    let file = std::fs::File::open("/proc/self/pagemap").unwrap();
    let offset = memory.address() / PAGE_SIZE * 8;
    file.read_exact_at(entries.as_flattened_mut(), offset as u64)
        .unwrap();
    let swapped = |entry: &&[u8; 8]| u64::from_le_bytes(**entry) >> 62 & 1 == 1;
    entries.iter().filter(swapped).count()
}

fn credit_is_asked_for_every_page(memory: &AnonymousMemory, region: &Region) {
    let (stop, written) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for at in 0..PAGES {
                memory.store(at as usize * PAGE_SIZE + 8, 9);
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
            written.store(true, Ordering::Relaxed);
        });
        soon(
            || region.growth().waiting == 1 || written.load(Ordering::Relaxed),
            region,
        );
        let growth = region.growth();
        stop.store(true, Ordering::Relaxed);
        region.open_gate();
        assert_eq!(
            (growth.waiting, growth.grown),
            (1, 0),
            "pages grew without credit"
        );
    });
}

#[test]
fn pages_in_the_hosts_swap_are_neither_broken_nor_lost() {
    let manager = manager();
    let content = |at: u32| u64::from(at / 2);
    // It has looked for swap space before there was any.
    let (memory, region) = merged_guest(&manager, Options::default());
    let Some(swap) = HostSwap::on() else { return };
    // A protected page of the pool that was not mapped, or is dropped from memory, leaves a marker in its place.
    region.close_gate();
    page_out(&memory);
    (0..8).for_each(|_| region.scan_pass());
    let stats = region.stats();
    println!("{} pages look swapped: {stats:?}", in_swap(&memory));
    assert_eq!((stats.cow_breaks, stats.broken), (0, 0), "nothing was written");
    assert_eq!(stats.shared, u64::from(PAGES));
    region.open_gate();
    (0..4).for_each(|_| region.scan_pass());
    region.close_gate();
    credit_is_asked_for_every_page(&memory, &region);
    (0..PAGES).for_each(|at| memory.write_page(at, &page(content(at))));

    // Pages that were written to are copies of the guest's own, in memory or not.
    let (memory, region) = merged_guest(&manager, Options::default());
    let broken: Vec<u32> = (0..PAGES).step_by(3).collect();
    broken
        .iter()
        .for_each(|&at| memory.write_page(at, &page(1000 + u64::from(at))));
    let swapped = page_out_some(&memory);
    (0..4).for_each(|_| region.scan_pass());
    let found = region.stats().cow_breaks;
    println!(
        "{swapped} of {} copies were swapped, {found} were found",
        broken.len()
    );
    assert_eq!(found, broken.len() as u64, "{:#?}", region.stats());
    (0..8).for_each(|_| region.scan_pass());
    let expected = |at: u32| {
        if at.is_multiple_of(3) {
            1000 + u64::from(at)
        } else {
            content(at)
        }
    };
    assert_pages(&memory, expected);
    page_out(&memory);
    drop(region);
    assert_pages(&memory, expected);
    drop(swap);
    assert_pages(&memory, expected);
}
