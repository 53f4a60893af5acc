//! CPU time, as the kernel counts it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// What this process has used: all threads, in and out of the kernel.
pub fn process_cpu() -> Duration {
    read(ClockId::ProcessCPUTime)
}

/// What this thread has used.
pub(crate) fn thread_cpu() -> Duration {
    read(ClockId::ThreadCPUTime)
}

/// What this process used during `action`, and what that returned.
pub fn cpu_of<T>(action: impl FnOnce() -> T) -> (Duration, T) {
    let before = process_cpu();
    let value = action();
    (process_cpu() - before, value)
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}
