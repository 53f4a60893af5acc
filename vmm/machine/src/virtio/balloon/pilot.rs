//! Brings a balloon to the size that is wanted: goals go in, the next target for the device comes out, in steps that
//! the `balloon-driver` crate's controller decides.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use balloon_driver::controller::{Aged, Controller, DriverPresence, Limits, Observation, Pain, Status};
use balloon_driver::{Values, features};
use serde_json::{Value, json};

use super::timer::Timer;
use super::{Device, FRAMES_PER_MIB};

/// Time between two steps while the balloon moves.
const BUSY: Duration = Duration::from_millis(250);
/// Time between two steps otherwise.
const IDLE: Duration = Duration::from_secs(1);
/// A timer that is set to this goes off at once; zero would switch it off.
pub(super) const AT_ONCE: Duration = Duration::from_millis(1);
/// Goals closer together are one goal: half a MiB, so that every whole MiB counts.
const DEAD_BAND: u64 = FRAMES_PER_MIB / 2;
/// The guest hurts when less than this part of its memory is available, or less than the crate's floor.
const FLOOR_PART: u64 = 8;
/// Statistics that missed this many of their times show nothing any more.
const MISSED: u32 = 3;

/// Steers one balloon. The larger wish of its owner (the command line and the control socket) and of the manager of the
/// host's memory is its goal.
pub(super) struct Pilot {
    controller: Controller,
    memory: u64,
    owner: u64,
    /// What the manager wishes, in frames. It does so without the device's lock.
    manager: Arc<AtomicU64>,
    status: Status,
    stepped: Instant,
    /// When the driver at work appeared.
    appeared: Option<Instant>,
    timer: Arc<Timer>,
}

impl Pilot {
    /// A pilot for the balloon of a guest with `memory` bytes, whose statistics are asked for every `polling`.
    pub(super) fn new(memory: u64, polling: Duration) -> io::Result<Self> {
        Ok(Self {
            controller: Controller::new(limits(memory, polling)),
            memory,
            owner: 0,
            manager: Arc::default(),
            status: Status::Absent,
            stepped: Instant::now(),
            appeared: None,
            timer: Arc::new(Timer::new()?),
        })
    }

    /// The size that is wanted, in frames.
    pub(super) fn goal(&self) -> u64 {
        self.owner.max(self.manager.load(Ordering::SeqCst))
    }

    /// What the guest's owner wants, in frames.
    pub(super) fn owner(&self) -> u64 {
        self.owner
    }

    /// What the controller is doing.
    pub(super) fn status(&self) -> Status {
        self.status
    }

    /// Where the manager's wish goes, and what makes the next step come soon.
    pub(super) fn manager(&self) -> (Arc<AtomicU64>, Arc<Timer>) {
        (Arc::clone(&self.manager), Arc::clone(&self.timer))
    }

    /// The owner wants another size; the next step comes soon.
    pub(super) fn wish(&mut self, frames: u64) {
        if self.owner != frames {
            self.owner = frames;
            self.hurry();
        }
    }

    /// The guest is asked for statistics every `polling` from now on.
    pub(super) fn set_polling(&mut self, polling: Duration) {
        self.controller.set_limits(limits(self.memory, polling));
    }

    /// Fresh statistics may show pain: looks at them soon.
    pub(super) fn hurry(&mut self) {
        // A balloon that moves is looked at often enough; steps out of turn would only spoil its rate.
        if !self.is_busy() {
            self.timer.once(AT_ONCE);
        }
    }

    /// A driver has appeared.
    pub(super) fn begin(&mut self) {
        self.appeared = Some(Instant::now());
        self.stepped = Instant::now();
        self.timer.once(BUSY);
    }

    /// The descriptor that is readable when a step is due.
    pub(super) fn due(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Takes a step; the result is the target to give `device`.
    pub(super) fn step(&mut self, device: &Device) -> u64 {
        let now = Instant::now();
        let step = self.controller.step(self.goal(), &self.look(device, now));
        self.stepped = now;
        self.status = step.status;
        if step.status == Status::Absent {
            self.appeared = None;
        }
        self.timer.clear();
        self.timer.once(if self.is_busy() { BUSY } else { IDLE });
        step.target
    }

    /// What is seen of the guest now.
    fn look(&self, device: &Device, now: Instant) -> Observation {
        let since = |then: Option<Instant>| now.saturating_duration_since(then.unwrap_or(now));
        let driver = if device.is_active() {
            DriverPresence::Present
        } else {
            DriverPresence::Absent
        };
        // A driver that promised statistics and sent none is as suspect as one that stopped sending them.
        let statistics = device.negotiated(features::STATISTICS).then(|| {
            device.statistics().map_or(
                Aged {
                    value: Values::default(),
                    age: since(self.appeared),
                },
                |latest| Aged {
                    value: latest.values,
                    age: latest.age(now),
                },
            )
        });
        Observation {
            elapsed: since(Some(self.stepped)).min(IDLE),
            driver,
            ballooned: Aged {
                value: device.ballooned(),
                age: since(device.last_heard().or(self.appeared)),
            },
            statistics,
        }
    }

    fn is_busy(&self) -> bool {
        is_busy(self.status)
    }
}

/// Whether a balloon moves.
pub(super) fn is_busy(status: Status) -> bool {
    matches!(status, Status::Inflating | Status::Deflating)
}

fn limits(memory: u64, polling: Duration) -> Limits {
    let usual = Limits::default();
    Limits {
        dead_band: DEAD_BAND,
        available_floor: usual.available_floor.min(memory / FLOOR_PART),
        stale_after: usual.stale_after.max(polling * MISSED),
        ..usual
    }
}

/// A status in words, and with its figures, for people and programs.
pub(super) fn describe(status: Status) -> Value {
    match status {
        Status::Absent => json!({"state": "absent"}),
        Status::Unresponsive { silent } => {
            json!({"state": "unresponsive", "silent_ms": silent.as_millis() as u64})
        }
        Status::Relieving(pain) => json!({"state": "relieving", "pain": name(pain)}),
        Status::Stopped { reached } => json!({"state": "stopped", "reached_mib": reached / FRAMES_PER_MIB}),
        Status::Blind => json!({"state": "blind"}),
        Status::Inflating => json!({"state": "inflating"}),
        Status::Deflating => json!({"state": "deflating"}),
        Status::Settled => json!({"state": "settled"}),
    }
}

fn name(pain: Pain) -> &'static str {
    match pain {
        Pain::OomKill => "oom_kill",
        Pain::LowMemory => "low_memory",
        Pain::MajorFaults => "major_faults",
        Pain::SwapIn => "swap_in",
    }
}
