//! One virtqueue seen from the device: every head that comes off the ring goes back on it, exactly once.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::chain::Chain;

/// How often one event goes round the ring before it lets others run: a guest that keeps adding buffers cannot
/// hold the device's thread.
const ROUNDS: u32 = 4;

/// The driver does not want interrupts (`VIRTQ_AVAIL_F_NO_INTERRUPT`); only without event index.
const NO_INTERRUPT: u16 = 1;

/// A ring that cannot be used any more: the device must be reset.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The ring's index jumped, or the ring is not in memory.
    #[error("the ring's indices or addresses are broken")]
    Indices(#[source] virtio_queue::Error),
    /// The available ring's entry cannot be read.
    #[error("the available ring cannot be read at entry {0}")]
    Unreadable(u16),
    /// The driver offers a descriptor that its table does not have, so there is no buffer to give back.
    #[error("descriptor {head} was offered, but the queue has {size}")]
    NoSuchHead {
        /// The descriptor's number.
        head: u16,
        /// The queue's size.
        size: u16,
    },
}

/// What becomes of a head once its chain was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It goes back to the driver with the rest of its batch.
    Return,
    /// The device keeps it, as its only one; one that was kept before goes back.
    Park,
}

/// What a queue is for.
pub(crate) trait Work<M> {
    /// Looks at one buffer.
    fn chain(&mut self, chain: Chain<'_, M>) -> Verdict;

    /// Whether the batch should end here.
    fn is_full(&self) -> bool {
        false
    }

    /// Does what the batch's buffers asked for; they go back to the driver afterwards.
    fn finish(&mut self) {}
}

/// What an event left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Served {
    /// There is more on the ring, and no notification will come for it.
    pub(crate) more: bool,
    /// The driver wants an interrupt.
    pub(crate) interrupt: bool,
}

/// A virtqueue and the heads that the device holds of it.
#[derive(Debug)]
pub(crate) struct Ring {
    queue: Queue,
    /// Popped in this batch, to be returned at its end.
    open: Vec<u16>,
    parked: Option<u16>,
    /// Whether anything was returned since the driver was last asked about an interrupt.
    added: bool,
}

impl Ring {
    pub(crate) fn new(queue: Queue) -> Self {
        Self {
            queue,
            open: Vec::new(),
            parked: None,
            added: false,
        }
    }

    pub(crate) fn state(&self) -> QueueState {
        self.queue.state()
    }

    pub(crate) fn parked(&self) -> Option<u16> {
        self.parked
    }

    /// Holds `head` as if it had been popped and parked. Fails when the queue has no such head.
    pub(crate) fn park(&mut self, head: Option<u16>) -> Result<(), u16> {
        match head {
            Some(head) if head >= self.queue.size() => Err(head),
            _ => {
                self.parked = head;
                Ok(())
            }
        }
    }

    /// Works off what is on the ring, batch by batch.
    pub(crate) fn serve<M: GuestMemory>(
        &mut self,
        memory: &M,
        work: &mut impl Work<M>,
    ) -> Result<Served, RingError> {
        for _ in 0..ROUNDS {
            self.queue
                .disable_notification(memory)
                .map_err(RingError::Indices)?;
            self.batch(memory, work)?;
            if !self
                .queue
                .enable_notification(memory)
                .map_err(RingError::Indices)?
            {
                return self.served(memory, false);
            }
        }
        self.served(memory, true)
    }

    /// Gives the parked head back; `None` when there is none.
    pub(crate) fn unpark<M: GuestMemory>(&mut self, memory: &M) -> Result<Option<Served>, RingError> {
        self.open.extend(self.parked.take());
        if self.open.is_empty() {
            return Ok(None);
        }
        self.return_heads(memory)?;
        self.served(memory, false).map(Some)
    }

    /// Takes up to one ring's worth of buffers, has them worked on, returns them. Whatever happens, what was taken
    /// is returned.
    fn batch<M: GuestMemory>(&mut self, memory: &M, work: &mut impl Work<M>) -> Result<(), RingError> {
        let collected = self.collect(memory, work);
        work.finish();
        let returned = self.return_heads(memory);
        collected.and(returned)
    }

    fn collect<M: GuestMemory>(&mut self, memory: &M, work: &mut impl Work<M>) -> Result<(), RingError> {
        let size = self.queue.size();
        for _ in 0..size {
            let at = self.queue.next_avail();
            let end = self
                .queue
                .avail_idx(memory, Ordering::Acquire)
                .map_err(RingError::Indices)?;
            if end.0 == at || work.is_full() {
                break;
            }
            let next = self.queue.iter(memory).map_err(RingError::Indices)?.next();
            let descriptors = next.ok_or(RingError::Unreadable(at))?;
            let head = descriptors.head_index();
            if head >= size {
                return Err(RingError::NoSuchHead { head, size });
            }
            match work.chain(Chain::new(memory, descriptors, size)) {
                Verdict::Return => self.open.push(head),
                Verdict::Park => self.open.extend(self.parked.replace(head)),
            }
        }
        Ok(())
    }

    /// Every head goes back with length zero: the device never writes into a buffer.
    fn return_heads<M: GuestMemory>(&mut self, memory: &M) -> Result<(), RingError> {
        self.added |= !self.open.is_empty();
        for head in self.open.drain(..) {
            self.queue.add_used(memory, head, 0).map_err(RingError::Indices)?;
        }
        Ok(())
    }

    fn served<M: GuestMemory>(&mut self, memory: &M, more: bool) -> Result<Served, RingError> {
        let added = std::mem::take(&mut self.added);
        let wanted = self
            .queue
            .needs_notification(memory)
            .map_err(RingError::Indices)?;
        let interrupt =
            added && wanted && (self.queue.event_idx_enabled() || !self.interrupts_off(memory)?);
        Ok(Served { more, interrupt })
    }

    /// virtio-queue does not look at the driver's flag.
    fn interrupts_off<M: GuestMemory>(&self, memory: &M) -> Result<bool, RingError> {
        let flags: u16 = memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(|error| RingError::Indices(virtio_queue::Error::GuestMemory(error)))?;
        Ok(u16::from_le(flags) & NO_INTERRUPT != 0)
    }
}
