//! The other end: a small virtio-balloon driver that lives in this process and speaks the same rings.
//!
//! For tests, benches and fuzzing, of this device and of others: [`Driver`] puts buffers on rings in guest memory
//! and takes them back, [`Guest`] behaves like Linux on top of it, [`Line`] is the interrupt between the two ends.

mod guest;
mod line;
mod ring;

pub use guest::{Device, Guest, GuestError};
pub use line::Line;
pub use ring::{Buffer, DriverRing, RingLayout};

use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::device::QUEUE_SIZE;
use crate::features::{self, EVENT_IDX, INDIRECT_DESC, QueueKind};
use crate::frame::{FRAME_SIZE, Run};

/// How many frame numbers one buffer holds (Linux: `VIRTIO_BALLOON_ARRAY_PFNS_MAX`).
pub const FRAMES_PER_BUFFER: usize = 256;

/// How many ranges one report holds (Linux: `PAGE_REPORTING_CAPACITY`).
pub const RANGES_PER_REPORT: usize = 32;

/// Bytes of the data area of one buffer.
const SLOT_SIZE: u64 = FRAMES_PER_BUFFER as u64 * 4;

/// What the driver half could not do. The device's fault, or the caller's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The queue was not negotiated.
    #[error("the driver has no {0:?} queue")]
    NoQueue(QueueKind),
    /// All descriptors are with the device.
    #[error("the queue is full; take buffers back first")]
    Full,
    /// The buffer is empty or holds more than one buffer can.
    #[error("a buffer of {0} entries cannot be sent")]
    Length(usize),
    /// The device returned a head that it did not have, or returned it twice.
    #[error("the device returned descriptor {0}, which it did not have")]
    NotOutstanding(u32),
    /// The device returned more heads than it had.
    #[error("the device's used index moved by {0}, more than it had buffers")]
    UsedIndex(u16),
    /// The rings do not lie in guest memory.
    #[error("cannot reach the rings in guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The place for the rings is not aligned or too small for them.
    #[error("virtio-queue refuses the rings' addresses")]
    Layout(#[from] virtio_queue::Error),
}

/// A buffer was made available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// The queue's number.
    pub queue: u16,
    /// Whether the device wants to be told.
    pub notify: bool,
}

/// The driver half: rings and buffers in a window of guest memory.
pub struct Driver<M> {
    memory: M,
    rings: Vec<(QueueKind, DriverRing)>,
}

impl<M: GuestAddressSpace> Driver<M> {
    /// Bytes of guest memory that the rings and buffers of a driver with `features` take.
    pub fn window_len(features: u64) -> u64 {
        features::queues(features).count() as u64 * Self::queue_window()
    }

    /// A driver with `features`, its rings in a window of guest memory from `base`, a multiple of 4 KiB, on.
    ///
    /// # Errors
    /// When the window does not lie in memory.
    pub fn new(memory: M, base: GuestAddress, features: u64) -> Result<Self, DriverError> {
        let mut rings = Vec::new();
        for (at, kind) in (0u64..).zip(features::queues(features)) {
            let layout = RingLayout {
                base: GuestAddress(base.0 + at * Self::queue_window()),
                size: QUEUE_SIZE,
                event_idx: features & EVENT_IDX != 0,
                indirect: features & INDIRECT_DESC != 0,
            };
            rings.push((kind, DriverRing::new(&*memory.memory(), layout)?));
        }
        Ok(Self { memory, rings })
    }

    /// The queues to activate a device with, in the order of their numbers.
    ///
    /// # Errors
    /// When the window was not aligned.
    pub fn queues(&self) -> Result<Vec<Queue>, DriverError> {
        self.rings
            .iter()
            .map(|(_, ring)| Ok(ring.device_queue()?))
            .collect()
    }

    /// The number of the queue for `kind`.
    pub fn queue_number(&self, kind: QueueKind) -> Option<u16> {
        self.rings
            .iter()
            .position(|(have, _)| *have == kind)
            .map(|at| at as u16)
    }

    /// The ring of the queue for `kind`, for those who want to lie on it.
    ///
    /// # Errors
    /// When the queue was not negotiated.
    pub fn ring(&mut self, kind: QueueKind) -> Result<&mut DriverRing, DriverError> {
        let found = self.rings.iter_mut().find(|(have, _)| *have == kind);
        found.map(|(_, ring)| ring).ok_or(DriverError::NoQueue(kind))
    }

    /// Sends up to [`FRAMES_PER_BUFFER`] frame numbers to the inflate or deflate queue.
    ///
    /// # Errors
    /// When there are none or too many, or the queue is full.
    pub fn send_frames(&mut self, kind: QueueKind, frames: &[u32]) -> Result<Sent, DriverError> {
        if frames.is_empty() || frames.len() > FRAMES_PER_BUFFER {
            return Err(DriverError::Length(frames.len()));
        }
        let mut bytes = [0; SLOT_SIZE as usize];
        for (place, frame) in bytes.chunks_exact_mut(4).zip(frames) {
            place.copy_from_slice(&frame.to_le_bytes());
        }
        self.send_bytes(kind, &bytes[..frames.len() * 4])
    }

    /// Sends statistics: tags and values.
    ///
    /// # Errors
    /// When there are none or too many, or the queue is full.
    pub fn send_statistics(&mut self, statistics: &[(u16, u64)]) -> Result<Sent, DriverError> {
        self.send_bytes(QueueKind::Statistics, &crate::statistics::encode(statistics))
    }

    /// Reports `runs` as free. They belong to the device until the buffer comes back.
    ///
    /// # Errors
    /// When there are none or more than [`RANGES_PER_REPORT`], or the queue is full.
    pub fn send_report(&mut self, runs: &[Run]) -> Result<Sent, DriverError> {
        if runs.is_empty() || runs.len() > RANGES_PER_REPORT {
            return Err(DriverError::Length(runs.len()));
        }
        let buffers: Vec<Buffer> = runs.iter().map(|run| range(*run)).collect();
        self.send(QueueKind::Reporting, &buffers)
    }

    /// Sends the number of a round of hinting, or `HINT_STOP`.
    ///
    /// # Errors
    /// When the queue is full.
    pub fn send_hint_command(&mut self, command: u32) -> Result<Sent, DriverError> {
        self.send_bytes(QueueKind::Hinting, &command.to_le_bytes())
    }

    /// Hints that `run` is free.
    ///
    /// # Errors
    /// When the queue is full.
    pub fn send_hint(&mut self, run: Run) -> Result<Sent, DriverError> {
        self.send(QueueKind::Hinting, &[range(run)])
    }

    /// Takes back what the device returned on the queue for `kind`. Returns how many buffers that were.
    ///
    /// # Errors
    /// When the device returned what it did not have.
    pub fn reap(&mut self, kind: QueueKind) -> Result<usize, DriverError> {
        let memory = self.memory.memory();
        self.ring(kind)?.reap(&*memory)
    }

    /// How many buffers the device has on the queue for `kind`.
    pub fn outstanding(&self, kind: QueueKind) -> usize {
        self.rings
            .iter()
            .find(|(have, _)| *have == kind)
            .map_or(0, |(_, ring)| ring.outstanding())
    }

    fn send_bytes(&mut self, kind: QueueKind, bytes: &[u8]) -> Result<Sent, DriverError> {
        if bytes.is_empty() || bytes.len() as u64 > SLOT_SIZE {
            return Err(DriverError::Length(bytes.len()));
        }
        let memory = self.memory.memory();
        let ring = self.ring(kind)?;
        let address = ring.next_slot().ok_or(DriverError::Full)?;
        memory.write_slice(bytes, address)?;
        self.send(
            kind,
            &[Buffer {
                address,
                len: bytes.len() as u32,
                device_writes: false,
            }],
        )
    }

    fn send(&mut self, kind: QueueKind, buffers: &[Buffer]) -> Result<Sent, DriverError> {
        let memory = self.memory.memory();
        let queue = self.queue_number(kind).ok_or(DriverError::NoQueue(kind))?;
        let notify = self.ring(kind)?.add(&*memory, buffers)?;
        Ok(Sent { queue, notify })
    }

    fn queue_window() -> u64 {
        RingLayout::window_len(QUEUE_SIZE).next_multiple_of(FRAME_SIZE)
    }
}

/// The pages themselves as a buffer.
fn range(run: Run) -> Buffer {
    let address = GuestAddress(run.first().number() * FRAME_SIZE);
    Buffer {
        address,
        len: (run.count() * FRAME_SIZE) as u32,
        device_writes: true,
    }
}
