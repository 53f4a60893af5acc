//! Guests of sizes that are unlike: small and large, odd in MiB, on one side of the hole for registers and on both. Each
//! is a real `levy vmm` on this machine's KVM, with a kernel of a few instructions and the memory layout that any kernel
//! gets. The test is its manager: it starts under it, shares, swaps, is held to a limit, keeps every byte, and stops.

#[path = "../bzimage/mod.rs"]
mod bzimage;
mod guest;
mod kernel;

use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::Mutex;

use allocator::Pages;
use guest::{Failed, Guest, MIB, PAGE, TWICE, UNLIKE};
use levy_manager::host::Host;
use levy_manager::policy::Settings;
use levy_protocol::link::Orders;
use levy_protocol::run_dir::Sockets;

/// MiB. The hole begins at 3072.
const SIZES: [u64; 16] = [
    63, 64, 65, 301, 513, 1001, 2047, 3071, 3072, 3073, 3328, 3500, 4096, 5120, 8192, 16384,
];

/// Guests at a time.
const AT_ONCE: usize = 4;

/// MiB. Larger ones run one after the other: the disk must be able to take each as a whole.
const LARGE: u64 = 4096;

/// By how much a limit may be missed: a process's own tables grow and shrink.
const TOLERANCE: u64 = 2 * MIB;

/// How far a guest came.
#[derive(Default)]
struct Row {
    mib: u64,
    started: bool,
    shared: u64,
    swapped: u64,
    /// The limit, and what was held under it at last.
    limited: Option<(u64, u64)>,
    /// Pages whose content was the same before and after.
    kept: usize,
    stopped: bool,
    failed: Option<Failed>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |is: bool| if is { "yes" } else { "no" };
        let limited = self.limited.map_or("no".to_owned(), |(limit, held)| {
            format!(
                "{:.1} of {:.1} MiB",
                held as f64 / MIB as f64,
                limit as f64 / MIB as f64
            )
        });
        write!(
            f,
            "{:>9} {:>8} {:>13} {:>14} {:>19} {:>11} {:>8}",
            self.mib,
            yes(self.started),
            self.shared,
            self.swapped,
            limited,
            self.kept,
            yes(self.stopped)
        )
    }
}

#[test]
fn guests_of_every_size_start_share_swap_are_limited_and_stop() {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        eprintln!("skipped: no usable /dev/kvm on this machine");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings::new(Pages::from_mib(64 << 10));
    // It never runs a round: orders are this test's alone.
    let host = Host::open(Sockets::in_dir(dir.path()), settings, Pages::from_mib(64 << 10)).unwrap();
    let (here, above): (Vec<_>, Vec<_>) = SIZES.into_iter().partition(|mib| mib * MIB <= memory());
    let (large, small) = here.into_iter().partition(|mib| *mib >= LARGE);
    let mut rows = lives(&host, dir.path(), (small, AT_ONCE));
    rows.extend(lives(&host, dir.path(), (large, 1)));
    host.close();
    rows.sort_by_key(|row| row.mib);
    println!("size, MiB  started  shared, pages  swapped, pages                held  same pages  stopped");
    rows.iter().for_each(|row| println!("{row}"));
    for mib in above {
        println!("skipped in part: a guest of {mib} MiB is larger than this host");
    }
    let failed: Vec<_> = rows
        .iter()
        .filter_map(|row| Some(format!("{} MiB: {}", row.mib, row.failed.as_ref()?)))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Guests of these sizes, so many at a time.
fn lives(host: &Host, dir: &Path, (sizes, at_once): (Vec<u64>, usize)) -> Vec<Row> {
    let (waiting, rows) = (Mutex::new(sizes.into_iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let Some(mib) = waiting.lock().unwrap().next() else {
                        return;
                    };
                    let row = live(host, dir, mib);
                    rows.lock().unwrap().push(row);
                }
            });
        }
    });
    rows.into_inner().unwrap()
}

fn live(host: &Host, dir: &Path, mib: u64) -> Row {
    let mut row = Row {
        mib,
        ..Row::default()
    };
    row.failed = through(host, dir, &mut row).err();
    row
}

/// The whole life of one guest; what it got through is in `row`.
fn through(host: &Host, dir: &Path, row: &mut Row) -> Result<(), Failed> {
    let guest = Guest::start(host, dir, row.mib)?;
    let (report, _) = guest.until("a report", |report, _| report.pages.private > 0)?;
    let pages = report.pages;
    let kept = pages.private + pages.shared + pages.zero + pages.compressed + pages.swapped;
    let size = (kept + pages.ballooned + pages.empty) * PAGE;
    if size != row.mib * MIB {
        return Err(format!("its pages by state are {size} bytes together"));
    }
    row.started = true;
    guest.touched()?;
    let before = guest.contents()?;
    reclaim(&guest, row)?;
    let after = guest.contents()?;
    row.kept = before
        .iter()
        .zip(&after)
        .filter(|(before, after)| before == after)
        .count();
    if before != after {
        return Err(format!(
            "{} of {} pages differ",
            before.len() - row.kept,
            before.len()
        ));
    }
    let status = guest.stop()?;
    row.stopped = status == 0;
    match status {
        0 => Ok(()),
        status => Err(format!("it ended with status {status}")),
    }
}

/// Has the guest's memory shared, swapped and held to a limit.
fn reclaim(guest: &Guest<'_>, row: &mut Row) -> Result<(), Failed> {
    // A closed gate puts all of it under management.
    let tight = Orders {
        limit_bytes: Some(guest.held()? + MIB / 4),
        scan_cpu: 1.0,
        scan_pages_per_second: 10_000_000,
        ..Orders::default()
    };
    guest.order(tight)?;
    guest.until("a closed gate", |_, status| status.gated)?;
    let roomy = Orders {
        limit_bytes: Some(guest.held()? + 64 * MIB),
        ..tight
    };
    guest.order(roomy)?;
    let twice = 2 * TWICE / PAGE;
    let (report, _) = guest.until("sharing", |report, _| report.pages.shared >= twice * 9 / 10)?;
    row.shared = report.pages.shared;

    guest.order(Orders {
        swap_pages: UNLIKE / PAGE / 2,
        ..roomy
    })?;
    let (report, _) = guest.until("swapping", |report, _| report.pages.swapped > 0)?;
    row.swapped = report.pages.swapped;

    let limit = guest.held()?.saturating_sub(3 * MIB);
    guest.order(Orders {
        limit_bytes: Some(limit),
        ..tight
    })?;
    guest.until("its limit", |_, status| {
        status.limit_bytes == Some(limit)
            && status.gated
            && guest.held().is_ok_and(|held| held <= limit + TOLERANCE)
    })?;
    row.limited = Some((limit, guest.held()?));
    Ok(())
}

/// Bytes of memory that this machine has.
fn memory() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap();
    let kib = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    kib.unwrap().parse::<u64>().unwrap() * 1024
}
