//! What the engine has done to a guest's pages, for people and programs that ask.

use page_share::Stats;
use serde::Serialize;

/// Pages of 4 KiB by state, then what was counted since the guest started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PageFigures {
    /// With memory of their own.
    pub private: u64,
    /// The kernel's zero page.
    pub zero: u64,
    /// Backed by a common copy.
    pub shared: u64,
    /// Were shared, and were written to.
    pub broken: u64,
    /// In the compressed store.
    pub compressed: u64,
    /// In the swap file.
    pub swapped: u64,
    /// In the balloon.
    pub ballooned: u64,
    /// Never touched, or given up.
    pub empty: u64,
    /// In blocks that are not under management yet.
    pub unmanaged: u64,
    /// Away for the running sample.
    pub sampled: u64,
    /// Passes over the memory.
    pub passes: u64,
    /// Pages of which a disk said that other guests may have them too.
    pub hinted: u64,
    /// Common copies that such a word brought ahead of the pass.
    pub shared_by_hint: u64,
    /// Pages merged with a common copy.
    pub merged: u64,
    /// Pages replaced by the zero page.
    pub zeroed: u64,
    /// Common copies that the guest wrote to.
    pub cow_breaks: u64,
    /// Pages that came back from the store.
    pub decompressed: u64,
    /// Pages that came back from the swap file.
    pub swapped_in: u64,
    /// Faults that the engine handled.
    pub faults: u64,
    /// Mappings beyond the first ones.
    pub mappings: u64,
    /// What the engine keeps for itself, bytes.
    pub metadata_bytes: u64,
    /// CPU used by scanning, microseconds.
    pub scan_cpu_us: u64,
    /// CPU used by the fault handler, microseconds.
    pub handler_cpu_us: u64,
}

impl PageFigures {
    /// The figures in `stats`, and how many pages disks hinted at.
    pub fn of(stats: &Stats, hinted: u64) -> Self {
        Self {
            private: stats.private,
            zero: stats.zero,
            shared: stats.shared,
            broken: stats.broken,
            compressed: stats.compressed,
            swapped: stats.swapped,
            ballooned: stats.ballooned,
            empty: stats.empty,
            unmanaged: stats.huge,
            sampled: stats.sampled,
            passes: stats.passes,
            hinted,
            shared_by_hint: stats.shared_by_hint,
            merged: stats.pages_merged,
            zeroed: stats.pages_zeroed,
            cow_breaks: stats.cow_breaks,
            decompressed: stats.pages_decompressed,
            swapped_in: stats.pages_swapped_in,
            faults: stats.faults,
            mappings: stats.mappings,
            metadata_bytes: stats.metadata_bytes,
            scan_cpu_us: stats.scan_cpu_ns / 1000,
            handler_cpu_us: stats.handler_cpu_ns / 1000,
        }
    }
}
