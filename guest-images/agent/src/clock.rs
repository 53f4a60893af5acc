//! The time that events carry.

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since the kernel started.
pub(crate) fn uptime_ms() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return 0;
    };
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    seconds * 1000 + u64::try_from(now.tv_nsec()).unwrap_or(0) / 1_000_000
}
