//! One virtqueue seen from the driver (virtio 1.3, section 2.7).

use std::sync::atomic::{Ordering, fence};

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::{DriverError, RANGES_PER_REPORT, SLOT_SIZE};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// The device does not want notifications; only without event index.
const NO_NOTIFY: u16 = 1;

/// One piece of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Where it starts.
    pub address: GuestAddress,
    /// Its length in bytes.
    pub len: u32,
    /// Whether the device may write it, rather than read it.
    pub device_writes: bool,
}

/// Where a ring lies and what was negotiated about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingLayout {
    /// Where its window starts.
    pub base: GuestAddress,
    /// How many descriptors it has, a power of two.
    pub size: u16,
    /// Whether event index was negotiated.
    pub event_idx: bool,
    /// Whether chains of several pieces go into indirect tables.
    pub indirect: bool,
}

impl RingLayout {
    /// Bytes of the window of a ring with `size` descriptors: rings, indirect tables, data slots.
    pub fn window_len(size: u16) -> u64 {
        let layout = Self {
            base: GuestAddress(0),
            size,
            event_idx: true,
            indirect: true,
        };
        layout.slot(size).0
    }

    /// The descriptor table.
    pub fn descriptors(&self) -> GuestAddress {
        self.base
    }

    /// The available ring.
    pub fn available(&self) -> GuestAddress {
        GuestAddress(self.base.0 + 16 * u64::from(self.size))
    }

    /// The used ring.
    pub fn used(&self) -> GuestAddress {
        GuestAddress((self.available().0 + 6 + 2 * u64::from(self.size)).next_multiple_of(4))
    }

    /// The indirect table of descriptor `head`.
    pub fn indirect_table(&self, head: u16) -> GuestAddress {
        let tables = (self.used().0 + 6 + 8 * u64::from(self.size)).next_multiple_of(16);
        GuestAddress(tables + 16 * RANGES_PER_REPORT as u64 * u64::from(head))
    }

    /// The data slot of descriptor `head`.
    pub fn slot(&self, head: u16) -> GuestAddress {
        GuestAddress(self.indirect_table(self.size).0 + SLOT_SIZE * u64::from(head))
    }
}

/// The driver's side of a virtqueue. It checks that the device returns every head once.
#[derive(Debug)]
pub struct DriverRing {
    layout: RingLayout,
    free: Vec<u16>,
    /// The descriptors of each outstanding chain, by its head.
    outstanding: Vec<Option<Vec<u16>>>,
    next_available: u16,
    last_used: u16,
}

impl DriverRing {
    /// An empty ring; clears its place in memory.
    ///
    /// # Errors
    /// When it does not lie in memory.
    pub fn new<M: GuestMemory>(memory: &M, layout: RingLayout) -> Result<Self, DriverError> {
        let len = layout.slot(0).0 - layout.base.0;
        memory.write_slice(&vec![0; len as usize], layout.base)?;
        Ok(Self {
            layout,
            free: (0..layout.size).rev().collect(),
            outstanding: vec![None; usize::from(layout.size)],
            next_available: 0,
            last_used: 0,
        })
    }

    /// Where everything lies.
    pub fn layout(&self) -> RingLayout {
        self.layout
    }

    /// The same ring for the device.
    ///
    /// # Errors
    /// When the addresses are not aligned.
    pub fn device_queue(&self) -> Result<Queue, virtio_queue::Error> {
        let mut queue = Queue::new(self.layout.size)?;
        queue.try_set_desc_table_address(self.layout.descriptors())?;
        queue.try_set_avail_ring_address(self.layout.available())?;
        queue.try_set_used_ring_address(self.layout.used())?;
        queue.set_event_idx(self.layout.event_idx);
        queue.set_ready(true);
        Ok(queue)
    }

    /// The data slot that goes with the next buffer; `None` when the ring is full.
    pub fn next_slot(&self) -> Option<GuestAddress> {
        self.free.last().map(|head| self.layout.slot(*head))
    }

    /// How many buffers the device has.
    pub fn outstanding(&self) -> usize {
        self.outstanding.iter().flatten().count()
    }

    /// Makes one buffer available. Returns whether the device wants to be notified.
    ///
    /// # Errors
    /// When there are not enough descriptors.
    pub fn add<M: GuestMemory>(&mut self, memory: &M, buffers: &[Buffer]) -> Result<bool, DriverError> {
        let indirect = self.layout.indirect && (2..=RANGES_PER_REPORT).contains(&buffers.len());
        let direct = if indirect { 1 } else { buffers.len() };
        if direct == 0 || direct > self.free.len() {
            return Err(DriverError::Full);
        }
        let chain = self
            .free
            .split_off(self.free.len() - direct)
            .into_iter()
            .rev()
            .collect::<Vec<u16>>();
        let head = chain[0];
        if indirect {
            let table = self.layout.indirect_table(head);
            let numbers: Vec<u16> = (0..buffers.len() as u16).collect();
            write_chain(memory, table, &numbers, buffers)?;
            let entry = Descriptor::new(table.0, 16 * buffers.len() as u32, INDIRECT, 0);
            self.write_descriptor(memory, head, entry)?;
        } else {
            write_chain(memory, self.layout.descriptors(), &chain, buffers)?;
        }
        self.outstanding[usize::from(head)] = Some(chain);
        self.offer(memory, head)
    }

    /// Writes one descriptor of the table, whatever it says.
    ///
    /// # Errors
    /// When it does not lie in memory.
    pub fn write_descriptor<M: GuestMemory>(
        &self,
        memory: &M,
        at: u16,
        descriptor: Descriptor,
    ) -> Result<(), DriverError> {
        write_entry(memory, self.layout.descriptors(), at, descriptor)
    }

    /// Puts `head` on the available ring, whatever it is. Returns whether the device wants to be notified.
    ///
    /// # Errors
    /// When the ring does not lie in memory.
    pub fn offer<M: GuestMemory>(&mut self, memory: &M, head: u16) -> Result<bool, DriverError> {
        let available = self.layout.available().0;
        let old = self.next_available;
        let place = GuestAddress(available + 4 + 2 * u64::from(old % self.layout.size));
        memory.store(head.to_le(), place, Ordering::Relaxed)?;
        self.next_available = old.wrapping_add(1);
        memory.store(
            self.next_available.to_le(),
            GuestAddress(available + 2),
            Ordering::Release,
        )?;
        fence(Ordering::SeqCst);
        if self.layout.event_idx {
            let place = GuestAddress(self.layout.used().0 + 4 + 8 * u64::from(self.layout.size));
            let event = u16::from_le(memory.load(place, Ordering::Relaxed)?);
            return Ok(self.next_available.wrapping_sub(event).wrapping_sub(1)
                < self.next_available.wrapping_sub(old));
        }
        let flags = u16::from_le(memory.load(self.layout.used(), Ordering::Relaxed)?);
        Ok(flags & NO_NOTIFY == 0)
    }

    /// Takes back what the device returned, and asks for an interrupt at the next return.
    ///
    /// # Errors
    /// When the device returned what it did not have.
    pub fn reap<M: GuestMemory>(&mut self, memory: &M) -> Result<usize, DriverError> {
        let mut reaped = 0;
        loop {
            let used = self.layout.used().0;
            let end = u16::from_le(memory.load(GuestAddress(used + 2), Ordering::Acquire)?);
            let fresh = end.wrapping_sub(self.last_used);
            if usize::from(fresh) > self.outstanding() {
                return Err(DriverError::UsedIndex(fresh));
            }
            for _ in 0..fresh {
                let place = used + 4 + 8 * u64::from(self.last_used % self.layout.size);
                let head = u32::from_le(memory.load(GuestAddress(place), Ordering::Relaxed)?);
                let chain = self.outstanding.get_mut(head as usize).and_then(Option::take);
                self.free
                    .extend(chain.ok_or(DriverError::NotOutstanding(head))?.into_iter().rev());
                self.last_used = self.last_used.wrapping_add(1);
                reaped += 1;
            }
            let event = GuestAddress(self.layout.available().0 + 4 + 2 * u64::from(self.layout.size));
            memory.store(self.last_used.to_le(), event, Ordering::Relaxed)?;
            fence(Ordering::SeqCst);
            if fresh == 0 {
                return Ok(reaped);
            }
        }
    }
}

fn write_chain<M: GuestMemory>(
    memory: &M,
    table: GuestAddress,
    numbers: &[u16],
    buffers: &[Buffer],
) -> Result<(), DriverError> {
    for (at, (number, buffer)) in numbers.iter().zip(buffers).enumerate() {
        let next = numbers.get(at + 1);
        let flags = if next.is_some() { NEXT } else { 0 } | if buffer.device_writes { WRITE } else { 0 };
        let entry = Descriptor::new(buffer.address.0, buffer.len, flags, next.copied().unwrap_or(0));
        write_entry(memory, table, *number, entry)?;
    }
    Ok(())
}

fn write_entry<M: GuestMemory>(
    memory: &M,
    table: GuestAddress,
    at: u16,
    descriptor: Descriptor,
) -> Result<(), DriverError> {
    Ok(memory.write_obj(descriptor, GuestAddress(table.0 + 16 * u64::from(at)))?)
}
