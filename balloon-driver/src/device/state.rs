//! A saved device: plain data that may come from anywhere, so it is checked before it becomes a device.

#[cfg(feature = "serde")]
mod queue_serde;

use virtio_queue::{QueueState, QueueT};
use vm_memory::GuestAddressSpace;

use crate::config::{HINT_DONE, HINT_STOP};
use crate::device::{ActivateError, Active, Balloon};
use crate::features::{self, FREE_PAGE_HINT, QueueKind, STATISTICS};
use crate::frame::Run;
use crate::frame_set::FrameSet;
use crate::release::Release;
use crate::rounds::{Phase, Round, Rounds};

/// A saved device. Counters and statistics are not part of it.
///
/// With the feature `serde` it can be written and read; what is read is checked when it becomes a device again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BalloonState {
    /// How many frames the host wanted in the balloon.
    pub target: u32,
    /// How many the guest said were in it.
    pub actual: u32,
    /// What the guest filled free pages with.
    pub poison: u32,
    /// Which frames were in the balloon, ascending.
    pub ballooned: Vec<Run>,
    /// Rounds of free page hinting.
    pub hinting: HintingState,
    /// The driver's side, where there was one.
    pub driver: Option<DriverState>,
}

/// Rounds of free page hinting at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HintingState {
    /// The command number of the last round; 0 before the first.
    pub last_command: u32,
    /// What the driver was told last.
    pub phase: HintingPhase,
}

/// What a driver was told last about free page hinting.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum HintingPhase {
    /// Nothing since the last reset.
    Idle,
    /// To list free pages.
    Running(RoundState),
    /// To list no more, and to leave the listed ones alone.
    Stopped(RoundState),
    /// That it may use the listed pages again.
    Done,
}

/// A round of free page hinting at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RoundState {
    /// The command number that the guest last sent ahead of its hints.
    pub acknowledged: Option<u32>,
    /// Whether it said that there are no more.
    pub complete: bool,
    /// The frames it listed, ascending.
    pub free: Vec<Run>,
}

/// What a saved device had agreed on with its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DriverState {
    /// The features it accepted.
    pub features: u64,
    /// Its queues, in the order of their numbers.
    #[cfg_attr(feature = "serde", serde(with = "queue_serde"))]
    pub queues: Vec<QueueState>,
    /// The head of the statistics buffer that the device held.
    pub parked_statistics: Option<u16>,
    /// Whether the driver broke a ring, so that the device waited for its reset.
    pub broken: bool,
}

/// Why a state cannot become a device.
#[derive(Debug, thiserror::Error)]
pub enum BrokenState {
    /// Frames in the balloon or in a round of hinting are not memory of this guest.
    #[error(
        "the frames {0:?} of the saved balloon are not memory of this guest; restore it with the memory it was saved with"
    )]
    Foreign(Run),
    /// The target is larger than the guest's memory.
    #[error(
        "the saved balloon wants {target} frames, but this guest has {capacity}; restore it with the memory it was saved with"
    )]
    Target {
        /// How many frames the host wanted.
        target: u32,
        /// How many there are.
        capacity: u64,
    },
    /// A round of hinting was on under a reserved number, or without a driver that negotiated hinting.
    #[error(
        "the saved balloon has a round of hinting under command {0}, which no driver can have been given"
    )]
    Hinting(u32),
    /// A queue contradicts itself.
    #[error("a queue of the saved balloon is invalid")]
    Queue(#[source] virtio_queue::Error),
    /// The queues do not fit the memory or the features.
    #[error("the saved balloon does not fit this device")]
    Activate(#[source] ActivateError),
    /// The parked buffer is not one of its queue.
    #[error("the saved balloon holds statistics buffer {0}, which its queue does not have")]
    Parked(u16),
    /// A queue counts other buffers taken and not returned than the device holds.
    #[error("queue {queue} of the saved balloon misses {missing} buffers, but the device holds {held}")]
    Heads {
        /// The queue's number.
        queue: u16,
        /// Taken from the queue and not returned.
        missing: u16,
        /// Held by the device.
        held: u16,
    },
}

impl BalloonState {
    /// Names every field of the device, so that a new one cannot be left out by mistake.
    pub(crate) fn of<M: GuestAddressSpace, R: Release>(balloon: &Balloon<M, R>) -> Self {
        let Balloon {
            config,
            store,
            active,
            rounds,
            // Chosen anew by the caller of `restore`.
            options: _,
            // What the host observes.
            statistics: _,
            heard: _,
            counters: _,
            // Empty between two events.
            list: _,
            reported: _,
        } = balloon;
        Self {
            target: config.host.target,
            actual: config.guest.actual,
            poison: config.guest.poison,
            ballooned: store.ballooned.runs(),
            hinting: HintingState::of(rounds),
            driver: active.as_ref().map(DriverState::of),
        }
    }

    pub(crate) fn restore_into<M: GuestAddressSpace, R: Release>(
        &self,
        balloon: &mut Balloon<M, R>,
    ) -> Result<(), BrokenState> {
        let capacity = balloon.store.ballooned.capacity();
        if u64::from(self.target) > capacity {
            return Err(BrokenState::Target {
                target: self.target,
                capacity,
            });
        }
        fill(&mut balloon.store.ballooned, &self.ballooned)?;
        let features = self.driver.as_ref().map_or(0, |driver| driver.features);
        let memory = || FrameSet::new(&balloon.store.port().backed());
        balloon.rounds = self.hinting.rounds(features & FREE_PAGE_HINT != 0, memory)?;
        balloon.config.host.hint_command = balloon.rounds.command();
        balloon.config.host.target = self.target;
        balloon.config.guest.actual = self.actual;
        balloon.config.guest.poison = self.poison;
        Ok(())
    }
}

impl HintingState {
    fn of(rounds: &Rounds) -> Self {
        let saved = |round: &Round| RoundState {
            acknowledged: round.guest,
            complete: round.complete,
            free: round.free.runs(),
        };
        Self {
            last_command: rounds.last,
            phase: match &rounds.phase {
                Phase::Idle => HintingPhase::Idle,
                Phase::Running(round) => HintingPhase::Running(saved(round)),
                Phase::Stopped(round) => HintingPhase::Stopped(saved(round)),
                Phase::Done => HintingPhase::Done,
            },
        }
    }

    /// The rounds again; `memory` makes the empty set over the guest's memory.
    fn rounds(&self, negotiated: bool, memory: impl Fn() -> FrameSet) -> Result<Rounds, BrokenState> {
        let round = |saved: &RoundState| {
            let mut free = memory();
            fill(&mut free, &saved.free)?;
            Ok(Round {
                guest: saved.acknowledged,
                free,
                complete: saved.complete,
            })
        };
        let begun = negotiated && ![HINT_STOP, HINT_DONE].contains(&self.last_command);
        if self.phase != HintingPhase::Idle && !begun {
            return Err(BrokenState::Hinting(self.last_command));
        }
        Ok(Rounds {
            last: self.last_command,
            phase: match &self.phase {
                HintingPhase::Idle => Phase::Idle,
                HintingPhase::Running(saved) => Phase::Running(round(saved)?),
                HintingPhase::Stopped(saved) => Phase::Stopped(round(saved)?),
                HintingPhase::Done => Phase::Done,
            },
        })
    }
}

impl DriverState {
    fn of<M>(active: &Active<M>) -> Self {
        let Active {
            features,
            rings,
            broken,
            // Given anew by the caller of `resume`.
            memory: _,
            interrupt: _,
        } = active;
        Self {
            features: *features,
            queues: rings.iter().map(queue_state).collect(),
            parked_statistics: rings.iter().flatten().find_map(|(kind, ring)| match kind {
                QueueKind::Statistics => ring.parked(),
                _ => None,
            }),
            broken: *broken,
        }
    }

    /// A device at rest holds one buffer of the statistics queue or none. Where it broke off in the middle it may
    /// hold another number, but never works with its queues again.
    pub(crate) fn check_heads(&self) -> Result<(), BrokenState> {
        if self.broken {
            return Ok(());
        }
        let parked = self.parked_statistics.filter(|_| self.features & STATISTICS == 0);
        if let Some(head) = parked {
            return Err(BrokenState::Parked(head));
        }
        for ((queue, kind), state) in (0u16..).zip(features::queues(self.features)).zip(&self.queues) {
            let held = match kind {
                QueueKind::Statistics => u16::from(self.parked_statistics.is_some()),
                _ => 0,
            };
            let missing = state.next_avail.wrapping_sub(state.next_used);
            if missing != held {
                return Err(BrokenState::Heads { queue, missing, held });
            }
        }
        Ok(())
    }
}

/// Puts `runs` into a set over the guest's memory.
fn fill(set: &mut FrameSet, runs: &[Run]) -> Result<(), BrokenState> {
    for &run in runs {
        let known: u64 = set.clip(run).map(Run::count).sum();
        if known != run.count() {
            return Err(BrokenState::Foreign(run));
        }
        set.insert(run);
    }
    Ok(())
}

/// A queue the driver left unused is saved as a fresh one.
fn queue_state(ring: &Option<(QueueKind, crate::ring::Ring)>) -> QueueState {
    match ring {
        Some((_, ring)) => ring.state(),
        None => virtio_queue::Queue::new(crate::device::QUEUE_SIZE)
            .map(|queue| queue.state())
            .unwrap_or_default(),
    }
}
