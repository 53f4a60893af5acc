//! The budget of mappings: the kernel allows vm.max_map_count of them to a process, all regions together.
//!
//! Every split adds up and every join subtracts; now and then the true number is read from /proc/self/maps, because
//! neighbours do not always join.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Instant;

use crate::region::error::AdoptError;

/// Mappings left alone for the allocator, threads and the rescue of a failed merge.
pub(crate) const SPARE: i64 = 16;

/// One process's mappings.
#[derive(Debug)]
pub(crate) struct Mappings {
    used: AtomicI64,
    limit: AtomicI64,
    regions: AtomicI64,
    /// Mappings made or joined since the last count.
    changed: AtomicI64,
    /// When that was, milliseconds after `since`.
    counted: AtomicU64,
    since: Instant,
    /// The kernel's books, opened once: a process that is confined later cannot open anything.
    books: Books,
}

/// Files of /proc that are read again and again.
#[derive(Debug)]
struct Books {
    limit: Option<File>,
    maps: Option<File>,
}

impl Books {
    fn open() -> Self {
        Self {
            limit: File::open("/proc/sys/vm/max_map_count").ok(),
            maps: File::open("/proc/self/maps").ok(),
        }
    }

    /// The limit.
    fn limit(&self) -> Option<i64> {
        let mut text = [0; 32];
        let len = self.limit.as_ref()?.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(&text[..len]).ok()?.trim().parse().ok()
    }

    /// How many mappings there are.
    fn used(&self) -> Option<i64> {
        let file = self.maps.as_ref()?;
        let mut bytes = vec![0; BOOK_BYTES];
        let (mut at, mut lines) = (0, 0);
        loop {
            let len = match file.read_at(&mut bytes, at) {
                Ok(0) => return Some(lines),
                Ok(len) => len,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => return None,
            };
            lines += bytes[..len].iter().filter(|&&byte| byte == b'\n').count() as i64;
            at += len as u64;
        }
    }
}

/// Bytes of the list of mappings read at a time.
const BOOK_BYTES: usize = 64 << 10;

/// Fewer changes than this are never worth a count.
const RECOUNT_AFTER: i64 = 2000;

/// Mappings for a region's areas, its store and its threads' stacks with their guards, and as many for what is around them.
const START: i64 = 48;

/// A region that is refused for lack of room counts again after this many milliseconds.
const RECOUNT_AFTER_MS: u64 = 1000;

/// The estimate is off by less than the changes since the last count; up to this part of the room that is harmless.
const HARMLESS: i64 = 8;

impl Mappings {
    /// The budget of this process.
    pub(crate) fn of_process() -> &'static Self {
        static ONE: OnceLock<Mappings> = OnceLock::new();
        ONE.get_or_init(|| {
            let mappings = Self {
                used: AtomicI64::new(0),
                limit: AtomicI64::new(0),
                regions: AtomicI64::new(0),
                changed: AtomicI64::new(0),
                counted: AtomicU64::new(0),
                since: Instant::now(),
                books: Books::open(),
            };
            mappings.recount();
            mappings
        })
    }

    /// Reads the limit and the true number anew, if enough has changed since the last time to be worth it: with many
    /// mappings the list is long.
    pub(crate) fn recount_if_stale(&self) {
        let changed = self.changed.load(Ordering::Relaxed);
        if changed > RECOUNT_AFTER && changed * HARMLESS > self.room() {
            self.recount();
        }
    }

    /// Whether `count` more may be made. Says no only by the true number, or one that is a second old at most.
    pub(crate) fn have_room_for(&self, count: i64) -> bool {
        if self.room() >= count {
            return true;
        }
        let age = self.now().saturating_sub(self.counted.load(Ordering::Relaxed));
        if age > RECOUNT_AFTER_MS {
            self.recount();
        }
        self.room() >= count
    }

    /// Refuses a region that could not even start: a thread that gets no stack would end the process.
    pub(crate) fn check_start(&self) -> Result<(), AdoptError> {
        self.recount();
        if self.room() >= START {
            return Ok(());
        }
        let number = |count: &AtomicI64| count.load(Ordering::Relaxed).max(0).unsigned_abs();
        Err(AdoptError::NoMappings {
            used: number(&self.used),
            needed: (START + SPARE).unsigned_abs(),
            limit: number(&self.limit),
        })
    }

    fn now(&self) -> u64 {
        self.since.elapsed().as_millis() as u64
    }

    /// Reads the limit and the true number anew.
    pub(crate) fn recount(&self) {
        self.counted.store(self.now(), Ordering::Relaxed);
        self.changed.store(0, Ordering::Relaxed);
        self.limit
            .store(self.books.limit().unwrap_or(65_530), Ordering::Relaxed);
        if let Some(used) = self.books.used() {
            self.used.store(used, Ordering::Relaxed);
        }
    }

    /// How many more there may be, the spare ones not counted.
    pub(crate) fn room(&self) -> i64 {
        self.limit.load(Ordering::Relaxed) - SPARE - self.used.load(Ordering::Relaxed)
    }

    /// The limit, the spare ones not counted.
    pub(crate) fn limit(&self) -> i64 {
        self.limit.load(Ordering::Relaxed) - SPARE
    }

    /// Regions in this process, at least one.
    pub(crate) fn regions(&self) -> i64 {
        self.regions.load(Ordering::Relaxed).max(1)
    }

    /// A region comes (1) or goes (-1).
    pub(crate) fn count_region(&self, change: i64) {
        self.regions.fetch_add(change, Ordering::Relaxed);
    }

    /// Counts `change` more or less.
    pub(crate) fn add(&self, change: i64) {
        self.used.fetch_add(change, Ordering::Relaxed);
        self.changed.fetch_add(change.abs(), Ordering::Relaxed);
    }
}
