//! The device's side of its virtqueues.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::chain::{Chain, Malformed};
use super::plug::Interrupt;
use crate::layout::PAGE_SIZE;
use crate::memory::{Gfn, GfnRange, GuestRam};

/// Why a device stops until its driver resets it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Fault {
    /// The guest broke the rules of its queue.
    #[error("queue {queue}: {what}")]
    Queue { queue: usize, what: Malformed },
    /// The guest broke the rules of the device, in the device's own words.
    #[error("{0}")]
    Protocol(String),
}

/// Whether there may be more to do after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The queue was empty at the end of the turn, and the guest will kick when it no longer is.
    Drained,
    /// The turn was long enough; come back after looking at the other queues.
    More,
}

/// What a turn of a device may take of a queue before it lets go of the device's lock: buffers, bytes that are copied,
/// and time. A chain is never cut, so devices bound what they do for one.
const BUFFERS: usize = 2048;
const BYTES: usize = 4 << 20;
const TURN: Duration = Duration::from_millis(10);

/// What is left of it.
#[derive(Debug)]
struct Budget {
    buffers: usize,
    bytes: usize,
    until: Instant,
}

impl Budget {
    fn new() -> Self {
        Self {
            buffers: BUFFERS,
            bytes: BYTES,
            until: Instant::now() + TURN,
        }
    }

    fn spend(&mut self, chain: &Chain<'_>) {
        self.buffers = self.buffers.saturating_sub(chain.buffers());
        self.bytes = self.bytes.saturating_sub(chain.moved());
    }

    fn is_spent(&self) -> bool {
        self.buffers == 0 || self.bytes == 0 || Instant::now() >= self.until
    }
}

/// All queues of one device, with the memory they are in and the interrupt that tells the guest.
pub struct Rings {
    ram: Arc<GuestRam>,
    queues: Vec<Queue>,
    /// Which queues the driver set up, whichever thread works them.
    ready: Vec<bool>,
    interrupt: Arc<Interrupt>,
    stop: Arc<AtomicBool>,
    budget: Budget,
}

impl Rings {
    /// The rings of a device whose driver has set up `queues`.
    pub(super) fn new(
        ram: Arc<GuestRam>,
        queues: Vec<Queue>,
        interrupt: Arc<Interrupt>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let ready = queues.iter().map(Queue::ready).collect();
        Self {
            ram,
            queues,
            ready,
            interrupt,
            stop,
            budget: Budget::new(),
        }
    }

    /// The device has its lock anew.
    pub(super) fn begin_turn(&mut self) {
        self.budget = Budget::new();
    }

    /// Whether the device has done enough for one turn. It is asked again, without a kick, once its lock was free.
    pub fn is_spent(&self) -> bool {
        self.budget.is_spent()
    }

    /// How many queues there are, whether or not the driver uses them all.
    pub fn count(&self) -> usize {
        self.ready.len()
    }

    /// Whether the driver set queue `index` up.
    pub fn is_ready(&self, index: usize) -> bool {
        self.ready.get(index).copied().unwrap_or(false)
    }

    /// The frames that the rings of all queues are in.
    pub fn pages(&self) -> Vec<GfnRange> {
        let ready = self.queues.iter().filter(|queue| queue.ready());
        ready
            .flat_map(|queue| {
                let size = u64::from(queue.size());
                // Entries, and flags, index and event index around them (virtio 1.2, 2.7).
                [
                    (queue.desc_table(), 16 * size),
                    (queue.avail_ring(), 2 * size + 6),
                    (queue.used_ring(), 8 * size + 6),
                ]
            })
            .map(|(start, len)| {
                let first = start / PAGE_SIZE;
                GfnRange {
                    start: Gfn::new(first),
                    pages: (start + len).div_ceil(PAGE_SIZE) - first,
                }
            })
            .collect()
    }

    /// How the device gets the guest's attention.
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    /// Hands the queues to a device that works them itself.
    pub fn take_queues(&mut self) -> Vec<Queue> {
        std::mem::take(&mut self.queues)
    }

    /// Whether the driver is taking the device down; long work should end early.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The guest memory the queues are in.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Serves the chains of queue `index` with `serve` until the queue is empty or the turn is over.
    ///
    /// Whatever `serve` returns, the chain goes back to the guest with the bytes it wrote.
    ///
    /// # Errors
    /// When the queue or a request is malformed.
    pub fn serve(
        &mut self,
        index: usize,
        mut serve: impl FnMut(&mut Chain<'_>) -> Result<(), Malformed>,
    ) -> Result<Turn, Fault> {
        let mut served = true;
        while served && !self.is_spent() && !self.stopping() {
            served = self.serve_one(index, &mut serve)?;
        }
        self.notify(index)?;
        Ok(if served && !self.stopping() {
            Turn::More
        } else {
            Turn::Drained
        })
    }

    /// Serves one chain of queue `index`, without telling the guest; `false` when there is none.
    ///
    /// After `false` the guest kicks the queue when it adds a chain. Call [`notify`](Self::notify) at the end of a
    /// batch.
    ///
    /// # Errors
    /// When the queue or the request is malformed.
    pub fn serve_one(
        &mut self,
        index: usize,
        serve: impl FnOnce(&mut Chain<'_>) -> Result<(), Malformed>,
    ) -> Result<bool, Fault> {
        let Some(queue) = self.queues.get_mut(index).filter(|q| q.ready()) else {
            return Ok(false);
        };
        let fault = |what| Fault::Queue { queue: index, what };
        let memory = self.ram.view();
        let Some(head) = pop(queue, memory).map_err(fault)? else {
            return Ok(false);
        };
        let table = GuestAddress(queue.desc_table());
        let (written, result) = match Chain::collect(memory, table, queue.size(), head) {
            Ok(mut chain) => {
                let result = serve(&mut chain);
                self.budget.spend(&chain);
                (chain.written(), result)
            }
            Err(what) => (0, Err(what)),
        };
        // A head beyond the table cannot be given back: there is no such buffer.
        if head < queue.size() {
            let written = u32::try_from(written).unwrap_or(u32::MAX);
            queue
                .add_used(memory, head, written)
                .map_err(|_| fault(Malformed::RingsOutsideMemory))?;
        }
        match result {
            Ok(()) => Ok(true),
            Err(what) => {
                self.notify(index)?;
                Err(fault(what))
            }
        }
    }

    /// Interrupts the guest where it wants to hear about the chains that went back on queue `index`.
    ///
    /// # Errors
    /// When the rings are no longer inside guest memory.
    pub fn notify(&mut self, index: usize) -> Result<(), Fault> {
        let memory = self.ram.view();
        let Some(queue) = self.queues.get_mut(index).filter(|q| q.ready()) else {
            return Ok(());
        };
        let wanted = queue.needs_notification(memory).map_err(|_| Fault::Queue {
            queue: index,
            what: Malformed::RingsOutsideMemory,
        })?;
        if wanted {
            self.interrupt.queue_used();
        }
        Ok(())
    }
}

/// The next available head. When there is none, the guest is asked to kick for the next one (with EVENT_IDX it
/// would otherwise stay silent), and the ring is looked at once more.
fn pop(queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<Option<u16>, Malformed> {
    let outside = |_| Malformed::RingsOutsideMemory;
    for look in 0..2 {
        let available = queue.avail_idx(memory, Ordering::Acquire).map_err(outside)?;
        let ahead = available - Wrapping(queue.next_avail());
        if ahead.0 > queue.size() {
            return Err(Malformed::AvailableIndex);
        }
        if ahead.0 > 0 {
            let slot = u64::from(queue.next_avail() % queue.size());
            let at = GuestAddress(queue.avail_ring() + 4 + 2 * slot);
            let head: u16 = memory
                .load(at, Ordering::Acquire)
                .map_err(|_| Malformed::RingsOutsideMemory)?;
            queue.set_next_avail(queue.next_avail().wrapping_add(1));
            return Ok(Some(u16::from_le(head)));
        }
        if look == 0 && !queue.enable_notification(memory).map_err(outside)? {
            return Ok(None);
        }
        fence(Ordering::SeqCst);
    }
    Ok(None)
}
