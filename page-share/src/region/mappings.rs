//! The budget of mappings: the kernel allows vm.max_map_count of them to a process, all regions together.
//!
//! Every split adds up and every join subtracts; now and then the true number is read from /proc/self/maps, because
//! neighbours do not always join.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

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
}

/// Fewer changes than this are never worth a count.
const RECOUNT_AFTER: i64 = 2000;

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

    /// Reads the limit and the true number anew.
    pub(crate) fn recount(&self) {
        self.changed.store(0, Ordering::Relaxed);
        let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count");
        let limit = limit
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(65_530);
        self.limit.store(limit, Ordering::Relaxed);
        if let Ok(maps) = std::fs::read("/proc/self/maps") {
            let lines = maps.iter().filter(|&&byte| byte == b'\n').count();
            self.used.store(lines as i64, Ordering::Relaxed);
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
