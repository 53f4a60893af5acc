//! The controller: a goal goes in, the next target for the guest comes out.
//!
//! Pure: no clock, no I/O. It is driven by what it last commanded, never by the guest's `actual`, which lags and may
//! lie; the device's own count serves only to see whether the guest makes progress.

mod limits;
mod pace;
mod pain;

pub use limits::Limits;
pub use pain::Pain;

use std::time::Duration;

use pace::Pace;
use pain::Watch;

use crate::frame::FRAME_SIZE;
use crate::statistics::Values;

/// A number from the guest and how old it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aged<T> {
    /// The number.
    pub value: T,
    /// How long ago it arrived.
    pub age: Duration,
}

/// Whether a driver works with the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverPresence {
    /// None: booting, unloaded, broken.
    Absent,
    /// One does.
    Present,
}

/// What the host sees of the guest at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// Time since the last step.
    pub elapsed: Duration,
    /// Whether a driver works with the device.
    pub driver: DriverPresence,
    /// Frames in the balloon by the device's count, and how long ago the guest last gave any sign of life.
    pub ballooned: Aged<u64>,
    /// The last statistics; none where the guest has none to give.
    pub statistics: Option<Aged<Values>>,
}

/// What the controller is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// There is no driver. The host must reclaim by other means.
    Absent,
    /// The driver owes work and gives no sign of life. The host must reclaim by other means.
    Unresponsive {
        /// For how long.
        silent: Duration,
    },
    /// The guest suffers: everything was given back, and nothing is taken for a while.
    Relieving(Pain),
    /// The guest gives no more: inflation stopped.
    Stopped {
        /// The size it reached, in frames.
        reached: u64,
    },
    /// The statistics are too old to see pain in: the balloon does not grow.
    Blind,
    /// The balloon grows.
    Inflating,
    /// The balloon shrinks.
    Deflating,
    /// The balloon has the size that is wanted, within the dead band.
    Settled,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The target to give the device, in frames.
    pub target: u64,
    /// Why.
    pub status: Status,
}

/// Brings one guest's balloon to the size that policy wants.
#[derive(Debug, Clone)]
pub struct Controller {
    limits: Limits,
    /// The goal in force: changes smaller than the dead band do not replace it.
    aim: u64,
    commanded: u64,
    pace: Pace,
    watch: Watch,
    /// Since when the driver owes work.
    owed: Duration,
    relief: Option<Relief>,
    /// The balloon stays below this for a while, because the guest hurt or gave no more there.
    ceiling: Option<Ceiling>,
}

#[derive(Debug, Clone, Copy)]
struct Relief {
    pain: Pain,
    left: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Ceiling {
    frames: u64,
    left: Duration,
    stopped: bool,
}

impl Controller {
    /// A controller for a balloon that is empty.
    pub fn new(limits: Limits) -> Self {
        Self {
            aim: 0,
            commanded: 0,
            pace: Pace::new(&limits),
            watch: Watch::default(),
            owed: Duration::ZERO,
            relief: None,
            ceiling: None,
            limits,
        }
    }

    /// Goes on with other settings; what was learned about the guest stays.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The next step towards `goal` frames.
    pub fn step(&mut self, goal: u64, seen: &Observation) -> Step {
        self.adopt(goal);
        let status = self.decide(seen);
        Step {
            target: self.commanded,
            status,
        }
    }

    /// Takes `goal` over unless it is in the dead band around the one in force. Zero always counts.
    fn adopt(&mut self, goal: u64) {
        if goal.abs_diff(self.aim) > self.limits.dead_band || goal == 0 {
            self.aim = goal;
            // A new goal is a new attempt, except that pain is not forgotten.
            self.ceiling = self.ceiling.filter(|ceiling| !ceiling.stopped);
        }
    }

    fn decide(&mut self, seen: &Observation) -> Status {
        if seen.driver == DriverPresence::Absent {
            *self = Self {
                aim: self.aim,
                ..Self::new(self.limits)
            };
            return Status::Absent;
        }
        self.age(seen.elapsed);
        let fresh = seen
            .statistics
            .filter(|statistics| statistics.age <= self.limits.stale_after);
        if let Some(pain) =
            fresh.and_then(|statistics| self.watch.look(&statistics, seen.elapsed, &self.limits))
        {
            self.hurt(pain, seen.ballooned.value);
        }
        if let Some(relief) = self.relief {
            self.commanded = 0;
            return Status::Relieving(relief.pain);
        }
        if let Some(silent) = self.silence(seen) {
            return Status::Unresponsive { silent };
        }
        if seen.statistics.is_some() && fresh.is_none() && self.wanted() > self.commanded {
            return Status::Blind;
        }
        self.approach(seen, fresh.map(|statistics| statistics.value))
    }

    /// Lets time pass.
    fn age(&mut self, elapsed: Duration) {
        let pass = |left: Duration| left.checked_sub(elapsed).filter(|left| !left.is_zero());
        self.relief = self.relief.and_then(|relief| {
            Some(Relief {
                left: pass(relief.left)?,
                ..relief
            })
        });
        self.ceiling = self.ceiling.and_then(|ceiling| {
            Some(Ceiling {
                left: pass(ceiling.left)?,
                ..ceiling
            })
        });
    }

    /// Everything back at once; later, no more than three quarters of what hurt.
    fn hurt(&mut self, pain: Pain, ballooned: u64) {
        let size = ballooned.min(self.commanded);
        if size > 0 {
            let left = self.limits.remember_pain;
            self.ceiling = Some(Ceiling {
                frames: size / 4 * 3,
                left,
                stopped: false,
            });
        }
        self.commanded = 0;
        self.pace = Pace::new(&self.limits);
        self.relief = Some(Relief {
            pain,
            left: self.limits.recovery,
        });
    }

    /// How long the guest has given no sign of life while it owed work; `None` while that is in order.
    fn silence(&mut self, seen: &Observation) -> Option<Duration> {
        let asked = seen
            .statistics
            .is_some_and(|statistics| statistics.age > self.limits.stale_after);
        if seen.ballooned.value == self.commanded && !asked {
            self.owed = Duration::ZERO;
            return None;
        }
        self.owed += seen.elapsed;
        let silent = self.owed.min(seen.ballooned.age);
        (silent >= self.limits.silence).then_some(silent)
    }

    /// What is wanted, less what experience forbids.
    fn wanted(&self) -> u64 {
        self.ceiling
            .map_or(self.aim, |ceiling| self.aim.min(ceiling.frames))
    }

    fn approach(&mut self, seen: &Observation, statistics: Option<Values>) -> Status {
        let ballooned = seen.ballooned.value;
        let wanted = self.wanted();
        if wanted < self.commanded {
            self.commanded = wanted;
            self.pace.rest(ballooned);
        } else if ballooned < self.commanded && self.pace.is_stuck(seen, &self.limits) {
            // Commanding what was reached ends the guest's own attempts, which cost it time and log lines.
            self.commanded = ballooned;
            let left = self.limits.retry_after;
            self.ceiling = Some(Ceiling {
                frames: ballooned,
                left,
                stopped: true,
            });
        } else if wanted > self.commanded {
            let room = statistics
                .and_then(|values| self.room(&values))
                .map(|room| ballooned.saturating_add(room));
            let pace = self
                .pace
                .next(self.commanded, ballooned, seen.elapsed, &self.limits);
            let next = wanted
                .min(self.commanded.saturating_add(pace))
                .min(room.unwrap_or(u64::MAX));
            self.commanded = self.commanded.max(next);
        }
        self.status(ballooned)
    }

    /// How many frames can be taken before available memory falls to the floor.
    fn room(&self, values: &Values) -> Option<u64> {
        Some(
            values
                .available_memory?
                .saturating_sub(self.limits.available_floor)
                / FRAME_SIZE,
        )
    }

    fn status(&self, ballooned: u64) -> Status {
        match self.ceiling {
            _ if ballooned > self.commanded => Status::Deflating,
            Some(ceiling) if ceiling.stopped && self.aim > ceiling.frames => {
                Status::Stopped { reached: ballooned }
            }
            _ if ballooned < self.commanded || self.commanded < self.wanted() => Status::Inflating,
            _ => Status::Settled,
        }
    }
}
