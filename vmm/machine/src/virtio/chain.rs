//! One request: a chain of descriptors, copied out of guest memory and checked before anyone uses it.

use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// What is wrong with a queue (virtio 1.2, 2.7 "Split Virtqueues"). Each is the guest's fault and none is the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Malformed {
    /// The rings themselves are not inside guest memory.
    #[error("the rings are not inside guest memory")]
    RingsOutsideMemory,
    /// The available index is further ahead than the queue is long.
    #[error("the available index is further ahead than the queue is long")]
    AvailableIndex,
    /// A descriptor index beyond its table.
    #[error("descriptor {index} is beyond its table of {size}")]
    Index { index: u32, size: u32 },
    /// More descriptors than the queue has: a loop.
    #[error("a chain is longer than its queue of {size}")]
    Loop { size: u16 },
    /// A buffer that is not guest memory.
    #[error("a buffer of {len:#x} bytes at {address:#x} is not inside guest memory")]
    Buffer { address: u64, len: u32 },
    /// A buffer for the device to read behind one for it to write.
    #[error("a readable buffer follows a writable one")]
    Order,
    /// An indirect table that is nested, chained on, empty or no whole number of descriptors.
    #[error("an indirect table is nested, continued or of a wrong length ({len:#x} bytes)")]
    Indirect { len: u32 },
    /// The device cannot find the parts of a request in the chain.
    #[error("the chain is too short for a request of this device")]
    TooShort,
}

#[derive(Clone, Copy, Debug)]
struct Buffer {
    at: GuestAddress,
    len: usize,
}

/// A request's buffers: first those the device reads, then those it writes, each with a cursor.
#[derive(Debug)]
pub struct Chain<'a> {
    memory: &'a GuestMemoryMmap,
    head: u16,
    readable: Cursor,
    writable: Cursor,
}

#[derive(Debug, Default)]
struct Cursor {
    buffers: Vec<Buffer>,
    total: usize,
    done: usize,
}

impl Cursor {
    fn push(&mut self, buffer: Buffer) {
        self.total = self.total.saturating_add(buffer.len);
        self.buffers.push(buffer);
    }

    fn left(&self) -> usize {
        self.total - self.done
    }

    /// The pieces of the next `len` bytes (fewer at the end) and moves behind them.
    fn advance(&mut self, len: usize) -> Vec<Buffer> {
        let pieces = self.upcoming(len);
        self.done += len.min(self.left());
        pieces
    }

    /// The pieces of the next `len` bytes (fewer at the end).
    fn upcoming(&self, len: usize) -> Vec<Buffer> {
        let mut skip = self.done;
        let mut want = len.min(self.left());
        let mut pieces = Vec::new();
        for buffer in &self.buffers {
            if want == 0 {
                break;
            }
            if skip >= buffer.len {
                skip -= buffer.len;
                continue;
            }
            let take = (buffer.len - skip).min(want);
            // The whole buffer was checked to lie inside memory, so its middle does.
            pieces.push(Buffer {
                at: GuestAddress(buffer.at.0 + skip as u64),
                len: take,
            });
            want -= take;
            skip = 0;
        }
        pieces
    }
}

impl<'a> Chain<'a> {
    /// Copies out and checks the chain that starts at descriptor `head` of the table of `size` entries at `table`.
    pub(super) fn collect(
        memory: &'a GuestMemoryMmap,
        table: GuestAddress,
        size: u16,
        head: u16,
    ) -> Result<Self, Malformed> {
        let mut chain = Self {
            memory,
            head,
            readable: Cursor::default(),
            writable: Cursor::default(),
        };
        let mut walk = Walk {
            memory,
            table,
            entries: u32::from(size),
            left: size,
            size,
            indirect: false,
        };
        let mut next = Some(head);
        while let Some(index) = next {
            let descriptor = walk.descriptor(index)?;
            if descriptor.flags() & VRING_DESC_F_INDIRECT as u16 != 0 {
                next = Some(walk.enter(&descriptor)?);
                continue;
            }
            chain.add(&descriptor)?;
            next = (descriptor.flags() & VRING_DESC_F_NEXT as u16 != 0).then(|| descriptor.next());
        }
        Ok(chain)
    }

    fn add(&mut self, descriptor: &Descriptor) -> Result<(), Malformed> {
        let buffer = Buffer {
            at: descriptor.addr(),
            len: descriptor.len() as usize,
        };
        if buffer.len > 0 && !GuestMemoryBackend::check_range(self.memory, buffer.at, buffer.len) {
            let (address, len) = (buffer.at.0, descriptor.len());
            return Err(Malformed::Buffer { address, len });
        }
        if descriptor.flags() & VRING_DESC_F_WRITE as u16 != 0 {
            self.writable.push(buffer);
        } else if self.writable.buffers.is_empty() {
            self.readable.push(buffer);
        } else {
            return Err(Malformed::Order);
        }
        Ok(())
    }

    /// How many buffers there are.
    pub(super) fn buffers(&self) -> usize {
        self.readable.buffers.len() + self.writable.buffers.len()
    }

    /// Bytes that were read or written.
    pub(super) fn moved(&self) -> usize {
        self.readable.done.saturating_add(self.writable.done)
    }

    /// The index that names this request to the guest.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that are still to be read.
    pub fn readable(&self) -> usize {
        self.readable.left()
    }

    /// Room that is still to be written.
    pub fn writable(&self) -> usize {
        self.writable.left()
    }

    /// Bytes written so far; what the guest is told when the chain goes back.
    pub fn written(&self) -> usize {
        self.writable.done
    }

    /// Copies the next bytes out of the guest's buffers; returns how many there were, at most `into.len()`.
    ///
    /// # Errors
    /// Never for a chain that was collected while its memory stays mapped.
    pub fn read(&mut self, into: &mut [u8]) -> Result<usize, Malformed> {
        let mut done = 0;
        for piece in self.readable.advance(into.len()) {
            self.memory
                .read_slice(&mut into[done..done + piece.len], piece.at)
                .map_err(|_| piece.outside())?;
            done += piece.len;
        }
        Ok(done)
    }

    /// Reads exactly `N` bytes.
    ///
    /// # Errors
    /// [`Malformed::TooShort`] when the chain has fewer.
    pub fn read_array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut bytes = [0; N];
        if self.read(&mut bytes)? == N {
            Ok(bytes)
        } else {
            Err(Malformed::TooShort)
        }
    }

    /// Where the next `len` bytes will be written: guest-physical address and length of each piece, in order.
    pub fn destinations(&self, len: usize) -> impl Iterator<Item = (u64, usize)> {
        let pieces = self.writable.upcoming(len);
        pieces.into_iter().map(|piece| (piece.at.0, piece.len))
    }

    /// Copies `from` into the guest's buffers; returns how many bytes fitted.
    ///
    /// # Errors
    /// Never for a chain that was collected while its memory stays mapped.
    pub fn write(&mut self, from: &[u8]) -> Result<usize, Malformed> {
        let mut done = 0;
        for piece in self.writable.advance(from.len()) {
            self.memory
                .write_slice(&from[done..done + piece.len], piece.at)
                .map_err(|_| piece.outside())?;
            done += piece.len;
        }
        Ok(done)
    }

    /// Moves the write cursor to `end` bytes before the end of the writable part without writing.
    ///
    /// # Errors
    /// [`Malformed::TooShort`] when there are fewer bytes left than `end`.
    pub fn skip_writable_to(&mut self, end: usize) -> Result<(), Malformed> {
        let left = self.writable.left();
        self.writable.done += left.checked_sub(end).ok_or(Malformed::TooShort)?;
        Ok(())
    }
}

impl Buffer {
    fn outside(self) -> Malformed {
        Malformed::Buffer {
            address: self.at.0,
            len: self.len as u32,
        }
    }
}

/// A walk along descriptors, through at most one indirect table and over at most as many as the queue has.
struct Walk<'a> {
    memory: &'a GuestMemoryMmap,
    table: GuestAddress,
    entries: u32,
    left: u16,
    size: u16,
    indirect: bool,
}

/// Bytes in a descriptor.
const DESCRIPTOR: u32 = 16;

impl Walk<'_> {
    fn descriptor(&mut self, index: u16) -> Result<Descriptor, Malformed> {
        let index = u32::from(index);
        let size = self.entries;
        if index >= size {
            return Err(Malformed::Index { index, size });
        }
        self.left = self
            .left
            .checked_sub(1)
            .ok_or(Malformed::Loop { size: self.size })?;
        let offset = u64::from(index * DESCRIPTOR);
        let at = self
            .table
            .0
            .checked_add(offset)
            .ok_or(Malformed::RingsOutsideMemory)?;
        self.memory
            .read_obj(GuestAddress(at))
            .map_err(|_| Malformed::RingsOutsideMemory)
    }

    /// Goes on in the indirect table that `descriptor` names; the index to go on with.
    fn enter(&mut self, descriptor: &Descriptor) -> Result<u16, Malformed> {
        let len = descriptor.len();
        let continued = descriptor.flags() & VRING_DESC_F_NEXT as u16 != 0;
        if self.indirect || continued || len == 0 || !len.is_multiple_of(DESCRIPTOR) {
            return Err(Malformed::Indirect { len });
        }
        self.indirect = true;
        self.table = descriptor.addr();
        self.entries = len / DESCRIPTOR;
        // The descriptor that names the table does not count towards the chain.
        self.left = self.size;
        Ok(0)
    }
}
