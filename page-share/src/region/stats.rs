//! What a region has done and holds, as one plain struct.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::region::table::{STATES, State};

/// A counter that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        /// The live counters behind [`Stats`].
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: Counter,)+ }

        /// Counters and page counts of one region, read by value. Pages of 4 KiB unless the name says otherwise;
        /// counters count from the region's start and only grow.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            /// Pages with memory of their own, not counting those in another field below.
            pub private: u64,
            /// Pages that were last seen as the kernel's zero page.
            pub zero: u64,
            /// Pages mapped from the pool.
            pub shared: u64,
            /// Pages mapped from the pool of which the kernel has made a private copy.
            pub broken: u64,
            /// Pages in the compressed store.
            pub compressed: u64,
            /// Pages in the swap file.
            pub swapped: u64,
            /// Pages that the guest has given up through its balloon.
            pub ballooned: u64,
            /// Pages never touched, or given up and not yet touched again.
            pub empty: u64,
            /// Pages taken for the running sample and not touched so far.
            pub sampled: u64,
            /// Pages inside huge blocks, which are left alone.
            pub huge: u64,
            /// Pages lost to a failing swap file or to failing memory.
            pub lost: u64,
            /// Pages that change hands at this moment.
            pub in_transit: u64,
            /// Mappings that this region has made beyond its first ones, estimated.
            pub mappings: u64,
            /// Bytes this region keeps for itself, kernel memory for the mappings included.
            pub metadata_bytes: u64,
            /// Bytes of memory that the compressed store has.
            pub store_bytes: u64,
            /// Bytes of disk space that the swap file has and no page is in.
            pub swap_spare_bytes: u64,
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            fn fill(&self, stats: &mut Stats) {
                $(stats.$name = self.$name.get();)+
            }
        }
    };
}

counters! {
    /// Passes over the memory; those of [`Region::scan_step`](crate::Region::scan_step) go past chunks that rest.
    passes,
    /// Pages looked at by scans, without those that passes went past.
    pages_scanned,
    /// Pages that scans found written and armed again.
    pages_written,
    /// Quiet pages sketched.
    pages_hashed,
    /// Pages looked at ahead of the pass because of a hint.
    pages_hinted,
    /// Common copies granted for pages of which a hint had told, ahead of the pass.
    shared_by_hint,
    /// Pages reported to the manager.
    pages_reported,
    /// Pages whose bytes were sent to the manager.
    pages_published,
    /// Pages merged with a pool page.
    pages_merged,
    /// Pages replaced by the zero page.
    pages_zeroed,
    /// Pages that turned out different from the pool page or no longer zero, and went back.
    pages_differed,
    /// Merges left out because the mappings allowed are used up.
    merges_without_mapping,
    /// Mapping calls that the kernel refused, and that were undone or tried again: merges, re-homes, splits, releases.
    mapping_failures,
    /// Pool pages that the guest wrote to, so that the kernel copied them.
    cow_breaks,
    /// Pages brought back from a pool mapping to memory of their own.
    pages_rehomed,
    /// Pages given up by the guest.
    pages_released,
    /// Ballooned pages that the guest touched all the same.
    balloon_pops,
    /// Pages that were taken for a sample.
    samples_taken,
    /// Of those, pages touched before the sample ended.
    samples_touched,
    /// Pages compressed.
    pages_compressed,
    /// Pages decompressed.
    pages_decompressed,
    /// Of those, pages that came back because a neighbour was touched.
    neighbours_decompressed,
    /// Pages written to the swap file.
    pages_swapped_out,
    /// Pages read from the swap file.
    pages_swapped_in,
    /// Of those, pages that came back because a neighbour was touched.
    neighbours_swapped_in,
    /// Reads of the swap file that failed; the pages stay there and are read again.
    swap_reads_failed,
    /// Pages whose stored copy, in the swap file or compressed, failed its checksum.
    pages_lost,
    /// Pages that the kernel refused to move or to drop: pinned, shared with a forked child, or locked in memory.
    pages_stuck,
    /// Faults that reached the handler.
    faults,
    /// Faults on pages in transit, left to their owner.
    faults_waited,
    /// Faults that had to be tried again because a mapping was being moved.
    faults_retried,
    /// Empty pages filled with zeros at a fault, neighbours included.
    pages_filled,
    /// Growing writes that had to wait for credit.
    faults_gated,
    /// Huge blocks split into managed pages.
    blocks_split,
    /// Huge blocks that were to be split and stay whole: no mapping is left for them, or I/O is in flight.
    splits_refused,
    /// Blocks rebuilt as huge pages.
    blocks_rebuilt,
    /// Calls to the manager that failed.
    port_failures,
    /// Nanoseconds of CPU used by the fault handler and swap threads.
    handler_cpu_ns,
    /// Nanoseconds of CPU used by scans.
    scan_cpu_ns,
}

impl Stats {
    /// The counters with the page counts of `census`.
    pub(crate) fn new(counters: &Counters, census: [u64; STATES]) -> Self {
        let count = |state: State| census[state as usize];
        let mut stats = Self {
            private: count(State::Private),
            zero: count(State::Zero),
            shared: count(State::Shared),
            broken: count(State::Broken),
            compressed: count(State::Compressed),
            swapped: count(State::Swapped),
            ballooned: count(State::Ballooned),
            empty: count(State::Empty),
            sampled: count(State::Sampled),
            huge: count(State::Huge),
            lost: count(State::Lost),
            in_transit: count(State::InTransit),
            ..Self::default()
        };
        counters.fill(&mut stats);
        stats
    }
}
