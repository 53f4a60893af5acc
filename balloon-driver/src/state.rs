//! A saved device: plain data that may come from anywhere, so it is checked before it becomes a device.

use virtio_queue::{QueueState, QueueT};
use vm_memory::GuestAddressSpace;

use crate::device::{ActivateError, Balloon};
use crate::features::QueueKind;
use crate::frame::Run;
use crate::release::Release;

/// A saved device. Counters and statistics are not part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalloonState {
    /// How many frames the host wanted in the balloon.
    pub target: u32,
    /// How many the guest said were in it.
    pub actual: u32,
    /// What the guest filled free pages with.
    pub poison: u32,
    /// Which frames were in the balloon, ascending.
    pub ballooned: Vec<Run>,
    /// The driver's side, where there was one.
    pub driver: Option<DriverState>,
}

/// What a saved device had agreed on with its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverState {
    /// The features it accepted.
    pub features: u64,
    /// Its queues, in the order of their numbers.
    pub queues: Vec<QueueState>,
    /// The head of the statistics buffer that the device held.
    pub parked_statistics: Option<u16>,
}

/// Why a state cannot become a device.
#[derive(Debug, thiserror::Error)]
pub enum BrokenState {
    /// Frames in the balloon are no memory of this guest.
    #[error(
        "the frames {0:?} of the saved balloon are not memory of this guest; restore it with the memory it was saved with"
    )]
    Foreign(Run),
    /// A queue contradicts itself.
    #[error("a queue of the saved balloon is invalid")]
    Queue(#[source] virtio_queue::Error),
    /// The queues do not fit the memory or the features.
    #[error("the saved balloon does not fit this device")]
    Activate(#[source] ActivateError),
    /// The parked buffer is not one of its queue.
    #[error("the saved balloon holds statistics buffer {0}, which its queue does not have")]
    Parked(u16),
}

impl BalloonState {
    pub(crate) fn of<M: GuestAddressSpace, R: Release>(balloon: &Balloon<M, R>) -> Self {
        Self {
            target: balloon.config.host.target,
            actual: balloon.config.guest.actual,
            poison: balloon.config.guest.poison,
            ballooned: balloon.store.ballooned.runs(),
            driver: balloon.active.as_ref().map(|active| DriverState {
                features: active.features,
                queues: active.rings.iter().map(queue_state).collect(),
                parked_statistics: active.rings.iter().flatten().find_map(|(kind, ring)| match kind {
                    QueueKind::Statistics => ring.parked(),
                    _ => None,
                }),
            }),
        }
    }

    pub(crate) fn restore_into<M: GuestAddressSpace, R: Release>(
        &self,
        balloon: &mut Balloon<M, R>,
    ) -> Result<(), BrokenState> {
        for &run in &self.ballooned {
            let known: u64 = balloon.store.ballooned.clip(run).map(Run::count).sum();
            if known != run.count() {
                return Err(BrokenState::Foreign(run));
            }
            balloon.store.ballooned.insert(run);
        }
        balloon.config.host.target = self.target;
        balloon.config.guest.actual = self.actual;
        balloon.config.guest.poison = self.poison;
        Ok(())
    }
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
