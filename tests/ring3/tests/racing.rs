//! Guests rewrite and check every page of their memory while the engine merges, re-homes, samples, compresses and
//! swaps it under them: nothing may be lost, nothing invented.
//!
//! About 20 seconds, and ten minutes with `--long`.
#![allow(unsafe_code)]
// UNSAFETY: hands memory that this test owns to a region.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use page_share::{Domain, Gfn, LocalManager, MemoryRange, Options, Region, Stats, Swap};
use ring3::{Guest, Memory, PAGE, Work};

const PAGES: u32 = 8192;
const GUESTS: usize = 2;

/// A guest under management. Fields drop in this order: vCPUs first, then the region, then the memory.
struct Managed {
    guest: Guest,
    region: Arc<Region>,
    memory: Arc<Memory>,
}

fn managed(manager: &LocalManager) -> Managed {
    let memory = Arc::new(Memory::anonymous(PAGES as usize * PAGE).unwrap());
    // Zeros that occupy memory, for the engine to find.
    (0..PAGES as usize).for_each(|page| memory.write(page * PAGE, 0));
    // SAFETY: private anonymous memory that `Managed` keeps mapped for longer than the region.
    let range = unsafe { MemoryRange::adopt(Gfn::new(0), memory.as_ptr(), PAGES) };
    let swap = Swap::create(&std::env::temp_dir(), PAGES).unwrap();
    let options = Options::default().with_store_bytes(8 << 20).with_swap(swap);
    let region = Arc::new(Region::adopt(vec![range], options).unwrap());
    region
        .connect(Box::new(manager.attach(region.page_limit()).unwrap()))
        .unwrap();
    // One vCPU leaves its pages alone for some time, so that they are merged; the other hardly ever does.
    let work = [
        Work::churn(0..PAGES * 3 / 4, 64, 4000),
        Work::churn(PAGES * 3 / 4..PAGES, 256, 1000),
    ];
    let guest = Guest::new(&memory, &work).unwrap();
    Managed {
        guest,
        region,
        memory,
    }
}

/// Everything but merging: what the host does to a guest when memory is short.
fn squeeze(region: &Region, round: u32) {
    region.start_sample(128);
    std::thread::sleep(Duration::from_millis(2));
    let sample = region.finish_sample();
    assert!(sample.touched <= sample.taken, "{sample:?}");
    for run in region.cold_pages(64) {
        region.compress(run);
    }
    for run in region.cold_pages(16) {
        region.swap_out(run).unwrap();
    }
    if round % 256 == 255 {
        region.unshare_all();
    }
    std::thread::sleep(Duration::from_millis(8));
}

/// Runs scanning and squeezing of all regions until `stop`.
fn engines<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    managed: &'scope [Managed],
    stop: &'scope AtomicBool,
) {
    for one in managed {
        let region = &one.region;
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                region.scan_pass();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        scope.spawn(move || {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                squeeze(region, round);
                round += 1;
            }
        });
    }
}

/// Everything that should have raced did, often.
fn all_happened(stats: &Stats) {
    let happened = [
        ("pages_merged", stats.pages_merged),
        ("pages_zeroed", stats.pages_zeroed),
        ("cow_breaks", stats.cow_breaks),
        ("pages_rehomed", stats.pages_rehomed),
        ("samples_touched", stats.samples_touched),
        ("pages_compressed", stats.pages_compressed),
        ("pages_decompressed", stats.pages_decompressed),
        ("pages_swapped_out", stats.pages_swapped_out),
        ("pages_swapped_in", stats.pages_swapped_in),
    ];
    for (name, count) in happened {
        assert!(count >= 100, "{name} is only {count}: {stats:#?}");
    }
    assert_eq!(stats.pages_lost, 0);
}

#[test]
fn no_write_is_lost_while_everything_happens_to_the_memory() {
    race("no_write_is_lost_while_everything_happens_to_the_memory", 18);
}

#[test]
#[ignore = "ten minutes"]
fn no_write_is_lost_for_ten_minutes() {
    race("no_write_is_lost_for_ten_minutes", 600);
}

fn race(test: &str, seconds: u64) {
    if let Err(reason) = ring3::available() {
        return ring3::skip(test, &reason);
    }
    let manager = LocalManager::new(Domain::new(2 * PAGES).unwrap());
    let all: Vec<Managed> = (0..GUESTS).map(|_| managed(&manager)).collect();
    let stop = AtomicBool::new(false);
    all.iter().for_each(|one| one.guest.start());
    std::thread::scope(|scope| {
        engines(scope, &all, &stop);
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            for one in &all {
                one.guest.check().unwrap();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
    });
    for one in all {
        let stats = one.region.stats();
        let before = one.guest.counters();
        // The guest goes on over plain memory once its region is gone.
        drop(one.region);
        let further = |now: &[ring3::Counters]| {
            now.iter()
                .zip(&before)
                .all(|(now, before)| now.writes > before.writes + 20_000)
        };
        one.guest.wait(Duration::from_secs(60), further).unwrap();
        let counters = one.guest.stop().unwrap();
        eprintln!("{counters:?}\n{stats:?}");
        all_happened(&stats);
        assert!(
            counters
                .iter()
                .all(|vcpu| vcpu.errors == 0 && vcpu.writes > 20_000),
            "{counters:?}"
        );
        drop(one.guest);
        drop(one.memory);
    }
}
