//! What one arm found.

use serde::Serialize;

use crate::Sample;

/// The busy guest under one tax, and both guests' memory meanwhile.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Arm {
    /// Which pair of arms it belongs to, from 1.
    pub(super) repeat: u32,
    /// The tax.
    pub(super) tax_percent: f64,
    /// The testbed's seconds when the tax was set, when measuring began and when it ended.
    pub(super) set: f64,
    pub(super) from: f64,
    pub(super) to: f64,
    /// Whether both sizes had come to rest before measuring, or patience had run out.
    pub(super) settled: bool,
    /// Operations of the busy guest per second.
    pub(super) rate: f64,
    /// Its reads from the disk per second: each one a miss in its page cache.
    pub(super) misses_per_second: f64,
    /// The same for each operation, which a machine's speed does not change.
    pub(super) misses_per_operation: f64,
    /// The idle guest's.
    pub(super) idle_reads_per_second: f64,
    /// Both guests' memory while it was measured.
    pub(super) idle: Holding,
    pub(super) busy: Holding,
}

/// A guest's memory, on average over the measured time, in MiB.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Holding {
    /// Memory of its own.
    pub(super) private_mib: f64,
    /// That and its pages of zeros, which cost nothing.
    pub(super) resident_mib: f64,
    /// The private memory that the plan gave it.
    pub(super) target_mib: f64,
    /// The private memory it was believed to use, by samples.
    pub(super) active_mib: f64,
    /// In the compressed store and the swap file.
    pub(super) squeezed_mib: f64,
}

impl Holding {
    /// The average for the guest called `name` between two moments of the testbed.
    pub(super) fn between(samples: &[Sample], name: &str, (from, to): (f64, f64)) -> Self {
        let within = || {
            samples
                .iter()
                .filter(move |sample| (from..=to).contains(&sample.seconds))
                .filter_map(move |sample| sample.guest(name))
        };
        let count = within().count().max(1) as f64;
        let mean = |of: fn(&crate::GuestSample) -> u64| {
            within().map(|guest| of(guest) as f64).sum::<f64>() / count / f64::from(1 << 20)
        };
        Self {
            private_mib: mean(|guest| guest.memory.private_bytes),
            resident_mib: mean(|guest| guest.resident_bytes),
            target_mib: mean(|guest| guest.target_bytes.unwrap_or_default()),
            active_mib: mean(|guest| guest.active_bytes),
            squeezed_mib: mean(|guest| guest.memory.compressed_bytes + guest.memory.swapped_bytes),
        }
    }
}
