//! What the controller may do, and when it has seen enough.

use std::time::Duration;

/// The controller's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Frames per second at the start, after pain, and for a guest that cannot keep up.
    pub slowest: u64,
    /// Frames per second for a guest that keeps up.
    pub fastest: u64,
    /// Goals that differ by no more than this many frames are the same goal.
    pub dead_band: u64,
    /// The guest hurts when its available memory is below this many bytes.
    pub available_floor: u64,
    /// The guest hurts when it has more major faults per second.
    pub major_faults_per_second: u64,
    /// The guest hurts when it swaps in more bytes per second.
    pub swap_in_per_second: u64,
    /// Inflation stops after this long without one more frame.
    pub no_progress: Duration,
    /// A guest that gave no more is asked again after this long.
    pub retry_after: Duration,
    /// A driver that owes work and gives no sign of life is unresponsive after this long.
    pub silence: Duration,
    /// Statistics older than this show nothing.
    pub stale_after: Duration,
    /// After pain nothing is taken for this long.
    pub recovery: Duration,
    /// For this long the balloon stays below three quarters of the size that hurt.
    pub remember_pain: Duration,
}

impl Default for Limits {
    /// For guests of 128 MiB and more, stepped about once a second.
    fn default() -> Self {
        Self {
            slowest: 4 << 8,
            fastest: 256 << 8,
            dead_band: 1 << 8,
            available_floor: 32 << 20,
            major_faults_per_second: 200,
            swap_in_per_second: 8 << 20,
            no_progress: Duration::from_secs(3),
            retry_after: Duration::from_secs(60),
            silence: Duration::from_secs(10),
            stale_after: Duration::from_secs(5),
            recovery: Duration::from_secs(10),
            remember_pain: Duration::from_secs(120),
        }
    }
}
