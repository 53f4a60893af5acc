//! Reading one descriptor chain, whatever the guest made of it.

use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestMemory, Permissions};

/// A chain that makes no sense. Its head goes back to the driver with length zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Which way a buffer's bytes flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The device reads them.
    ToDevice,
    /// The device may write them.
    ToDriver,
}

/// One chain of descriptors, at most as long as its queue.
pub(crate) struct Chain<'m, M> {
    memory: &'m M,
    descriptors: DescriptorChain<&'m M>,
    longest: u16,
}

/// How much of a buffer was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All of it.
    Whole,
    /// As much as the caller allows; there is more.
    Cut,
}

impl<'m, M: GuestMemory> Chain<'m, M> {
    /// The chain `descriptors` of a queue with `longest` entries.
    pub(crate) fn new(memory: &'m M, descriptors: DescriptorChain<&'m M>, longest: u16) -> Self {
        Self {
            memory,
            descriptors,
            longest,
        }
    }

    pub(crate) fn memory(&self) -> &'m M {
        self.memory
    }

    /// Shows every descriptor to `visit`. Fails when the chain loops, ends nowhere or is longer than the queue: the
    /// iterator of virtio-queue just stops there, but the last descriptor still names a next one.
    pub(crate) fn walk(
        self,
        mut visit: impl FnMut(Direction, Descriptor) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let mut unfinished = true;
        for (at, descriptor) in self.descriptors.enumerate() {
            if at >= usize::from(self.longest) {
                return Err(Malformed);
            }
            unfinished = descriptor.has_next();
            let direction = if descriptor.is_write_only() {
                Direction::ToDriver
            } else {
                Direction::ToDevice
            };
            visit(direction, descriptor)?;
        }
        if unfinished { Err(Malformed) } else { Ok(()) }
    }

    /// Puts the chain's bytes, at most `limit` of them, into `bytes`. All of them must be for the device to read.
    /// What is in `bytes` after a malformed chain means nothing.
    pub(crate) fn read(self, bytes: &mut Vec<u8>, limit: usize) -> Result<Extent, Malformed> {
        let memory = self.memory;
        let mut extent = Extent::Whole;
        bytes.clear();
        self.walk(|direction, descriptor| {
            if direction != Direction::ToDevice {
                return Err(Malformed);
            }
            let len = descriptor.len() as usize;
            let room = limit - bytes.len();
            if len > room {
                extent = Extent::Cut;
            }
            // Memory that is not there fails even where it would not be read.
            if !memory.check_range(descriptor.addr(), len, Permissions::Read) {
                return Err(Malformed);
            }
            let at = bytes.len();
            bytes.resize(at + len.min(room), 0);
            memory
                .read_slice(&mut bytes[at..], descriptor.addr())
                .map_err(|_| Malformed)
        })?;
        Ok(extent)
    }
}
