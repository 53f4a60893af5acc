//! A timer that a device thread waits for among other descriptors and that never makes its reader wait.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// A timer of the monotonic clock.
#[derive(Debug)]
pub(super) struct Timer(OwnedFd);

impl Timer {
    /// A timer that does not run.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Goes off once, `after` from now.
    pub(super) fn once(&self, after: Duration) {
        self.set(after, Duration::ZERO);
    }

    /// Goes off every `interval`.
    pub(super) fn every(&self, interval: Duration) {
        self.set(interval, interval);
    }

    fn set(&self, first: Duration, interval: Duration) {
        let time = |time: Duration| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        let times = Itimerspec {
            it_interval: time(interval),
            it_value: time(first),
        };
        // Neither the descriptor nor the times can be wrong, which is all that the call refuses.
        let _ = timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &times);
    }

    /// Forgets that it went off.
    pub(super) fn clear(&self) {
        // A timer that was set anew meanwhile has nothing to read, which is as well.
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
