//! The fault handler never allocates: the allocator's locks may be held by a thread that waits for a page.
#![allow(unsafe_code)]
// UNSAFETY: an allocator that looks who calls it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use page_share::{AnonymousMemory, Gfn, Options, PAGE_SIZE, PageRun, Region, Swap};

/// The handler's thread id, 0 before it is known.
static WATCHED: AtomicI32 = AtomicI32::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);

struct Watching;

fn note() {
    let watched = WATCHED.load(Ordering::Relaxed);
    // SAFETY: asks for the caller's id.
    if watched != 0 && unsafe { libc::gettid() } == watched {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note();
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// The thread of this process with the name `name`, which it gives itself when it first runs.
fn thread(name: &str) -> i32 {
    let named = |path: &std::path::PathBuf| {
        std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        if let Some(path) = tasks.map(|task| task.unwrap().path()).find(named) {
            return path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        }
        assert!(Instant::now() < until, "{name} does not run");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_fault_handler_never_calls_the_allocator() {
    let memory = AnonymousMemory::new(4096).unwrap();
    (0..2048).for_each(|at| memory.write_page(at, &[(at % 251 + 1) as u8; PAGE_SIZE]));
    let options = Options::default()
        .with_store_bytes(8 << 20)
        .with_swap(Swap::create(&std::env::temp_dir(), 2048).unwrap());
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
    assert_eq!(region.compress(PageRun::new(Gfn::new(0), 512)), 512);
    assert_eq!(region.swap_out(PageRun::new(Gfn::new(512), 512)).unwrap(), 512);
    assert!(region.start_sample(200) > 0);
    WATCHED.store(thread("page-faults"), Ordering::SeqCst);
    std::thread::scope(|scope| {
        for id in 0..4 {
            let memory = &memory;
            scope.spawn(move || {
                for at in (id..4096).step_by(4) {
                    let byte = if at < 2048 { (at % 251 + 1) as u8 } else { 0 };
                    assert!(memory.read_page(at) == [byte; PAGE_SIZE], "page {at}");
                }
            });
        }
    });
    let (stats, calls) = (region.stats(), CALLS.load(Ordering::SeqCst));
    WATCHED.store(0, Ordering::SeqCst);
    assert!(
        stats.pages_decompressed == 512 && stats.pages_swapped_in == 512,
        "{stats:#?}"
    );
    assert!(
        stats.samples_touched > 0 && stats.pages_filled >= 2048,
        "{stats:#?}"
    );
    assert_eq!(calls, 0, "calls to the allocator");
}
