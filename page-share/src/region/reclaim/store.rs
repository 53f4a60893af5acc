//! Compressed pages in memory: LZ4 in size classes of 64 bytes, every byte accounted, every page with a checksum.
//!
//! Compressing needs no store, so a scanner compresses first ([`Compressor`]) and holds a lock around
//! [`Store::insert`] only. [`Store::load`] and [`Store::remove`] never allocate, free or block, so that a fault handler
//! may call them; the memory of empty blocks goes back to the kernel in [`Store::trim`] alone.
//!
//! Memory fails, and a process that serves a guest from here must not hand out what is left of a page: a page comes
//! back only if it has the checksum of the page that went in. It is the sketch under a fixed key: only this
//! process can write here, so it need not prevent forgery.

mod block;
mod compressor;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::sync::LazyLock;

use lz4_flex::block::decompress_into;

use crate::page::{PAGE_SIZE, Page};
use crate::region::kernel::Slab;
use block::{BLOCK, Block, NONE, STEP};
use compressor::{HEADER, LARGEST, SUMS, header};

pub use compressor::{COMPRESSED_LIMIT, Compressed, Compressor};

const CLASSES: usize = LARGEST / STEP;

/// Where a store keeps a page. Fits the state of a page: 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StoreHandle(u32);

impl StoreHandle {
    /// The handle whose [`bits`](Self::bits) were kept. A wrong one is found out when it is used.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The handle as a number.
    pub const fn bits(self) -> u32 {
        self.0
    }

    fn new(block: u32, place: usize) -> Self {
        Self(block << 10 | place as u32)
    }

    fn block(self) -> usize {
        (self.0 >> 10) as usize
    }

    fn place(self) -> usize {
        (self.0 & 0x3ff) as usize
    }
}

/// Why a store did not do as told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Taking the page would need more memory than the store may have.
    #[error(
        "the compressed store is full: it has {reserved} of at most {limit} bytes; swap to a file instead"
    )]
    Full {
        /// Bytes in use.
        reserved: usize,
        /// Most bytes that may be in use.
        limit: usize,
    },
    /// There is no page under this handle.
    #[error("the compressed store has no page under {0:?}")]
    Unknown(StoreHandle),
    /// The stored bytes are not those of the page that was kept: memory failed. The page is lost; its guest must not
    /// run on as if it were not.
    #[error("the compressed page under {0:?} is damaged: what is there is not what was kept")]
    Damaged(StoreHandle),
}

/// Compressed pages.
#[derive(Debug)]
pub struct Store {
    slab: Slab,
    /// All blocks that were ever in use, in the slab's order.
    blocks: Vec<Block>,
    /// For each class, the first block with free places; the others follow by their links.
    open: [u32; CLASSES],
    /// Blocks without a page that still have their memory, with room for all: emptying one must not allocate.
    empty: Vec<u32>,
    /// Blocks whose memory was given back.
    vacant: Vec<u32>,
    limit: usize,
    pages: usize,
    stored: usize,
}

impl Store {
    /// An empty store that may take `limit` bytes of memory in all. Reserves address space, no memory.
    ///
    /// # Errors
    /// When the kernel refuses the address space.
    pub fn new(limit: usize) -> io::Result<Self> {
        LazyLock::force(&SUMS);
        // A handle has 22 bits for the block.
        let limit = limit.min(BLOCK << 22);
        Ok(Self {
            slab: Slab::reserve(limit)?,
            blocks: Vec::new(),
            open: [NONE; CLASSES],
            empty: Vec::new(),
            vacant: Vec::new(),
            limit,
            pages: 0,
            stored: 0,
        })
    }

    /// Pages in the store.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Bytes of compressed content, without headers, rounding and free places.
    pub fn stored_bytes(&self) -> usize {
        self.stored
    }

    /// Every byte of memory the store has, free places and its own lists included.
    pub fn reserved_bytes(&self) -> usize {
        let lists = self.empty.capacity() + self.vacant.capacity();
        (self.blocks.len() - self.vacant.len()) * BLOCK
            + self.blocks.capacity() * size_of::<Block>()
            + lists * size_of::<u32>()
    }

    /// Bytes of blocks without a page: what [`Store::trim`] can give back.
    pub fn empty_bytes(&self) -> usize {
        self.empty.len() * BLOCK
    }

    /// Keeps `page`.
    ///
    /// # Errors
    /// [`StoreError::Full`].
    pub fn insert(&mut self, page: Compressed<'_>) -> Result<StoreHandle, StoreError> {
        let class = (HEADER + page.bytes()).div_ceil(STEP) - 1;
        let number = match self.open[class] {
            NONE => self.open_block(class)?,
            open => open,
        };
        let block = &mut self.blocks[number as usize];
        let place = block.free_place().ok_or(StoreError::Full {
            reserved: 0,
            limit: self.limit,
        })?;
        block.flip(place);
        block.live += 1;
        if block.is_full() {
            self.unlink(number);
        }
        let handle = StoreHandle::new(number, place);
        if let Some(place) = self.slab.get_mut(self.range(handle)) {
            place[..HEADER].copy_from_slice(&page.header);
            place[HEADER..HEADER + page.bytes()].copy_from_slice(page.bytes);
        }
        self.pages += 1;
        self.stored += page.bytes();
        Ok(handle)
    }

    /// Decompresses a page into `page`; the store keeps it.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], [`StoreError::Damaged`]; the contents of `page` mean nothing then.
    pub fn load(&self, handle: StoreHandle, page: &mut Page) -> Result<(), StoreError> {
        let place = self.place(handle)?;
        let (kept, bytes) = place.split_at(HEADER);
        let length = length_of(place);
        let compressed = bytes.get(..length).ok_or(StoreError::Damaged(handle))?;
        match decompress_into(compressed, page) {
            Ok(PAGE_SIZE) if header(length, page) == kept => Ok(()),
            _ => Err(StoreError::Damaged(handle)),
        }
    }

    /// Forgets a page.
    ///
    /// # Errors
    /// [`StoreError::Unknown`].
    pub fn remove(&mut self, handle: StoreHandle) -> Result<(), StoreError> {
        let length = length_of(self.place(handle)?);
        let number = handle.block() as u32;
        let block = &mut self.blocks[handle.block()];
        let was_full = block.is_full();
        block.flip(handle.place());
        block.live -= 1;
        match (was_full, block.live) {
            (false, 0) => {
                self.unlink(number);
                self.empty.push(number);
            }
            (true, 0) => self.empty.push(number),
            (true, _) => self.link(number),
            (false, _) => {}
        }
        self.pages -= 1;
        // The length of a damaged page may be anything.
        self.stored = self.stored.saturating_sub(length);
        Ok(())
    }

    /// Gives the memory of at most `blocks` empty blocks of 64 KiB back to the kernel. Returns the bytes.
    pub fn trim(&mut self, blocks: usize) -> usize {
        let mut given = 0;
        for _ in 0..blocks {
            let Some(number) = self.empty.pop() else { break };
            let pages = BLOCK / PAGE_SIZE;
            let first = number as usize * pages;
            if !self.slab.discard(first..first + pages) {
                self.empty.push(number);
                break;
            }
            self.vacant.push(number);
            given += BLOCK;
        }
        given
    }

    /// Where the page under `handle` is in the slab.
    fn range(&self, handle: StoreHandle) -> Range<usize> {
        let size = self.blocks[handle.block()].size();
        let start = handle.block() * BLOCK + handle.place() * size;
        start..start + size
    }

    fn place(&self, handle: StoreHandle) -> Result<&[u8], StoreError> {
        let unknown = StoreError::Unknown(handle);
        let block = self.blocks.get(handle.block()).ok_or(unknown)?;
        if !block.has(handle.place()) {
            return Err(unknown);
        }
        self.slab.get(self.range(handle)).ok_or(unknown)
    }

    /// A block of class `class` with free places, from one that has memory if there is one.
    fn open_block(&mut self, class: usize) -> Result<u32, StoreError> {
        let number = match self.empty.pop() {
            Some(number) => number,
            None => self.add_block()?,
        };
        self.blocks[number as usize] = Block::new(class);
        self.link(number);
        Ok(number)
    }

    fn add_block(&mut self) -> Result<u32, StoreError> {
        let reserved = self.reserved_bytes();
        let full = StoreError::Full {
            reserved,
            limit: self.limit,
        };
        // The lists may double.
        let lists = (self.blocks.len() + 8) * (size_of::<Block>() + 2 * size_of::<u32>());
        if reserved + BLOCK + lists > self.limit {
            return Err(full);
        }
        if let Some(number) = self.vacant.pop() {
            return Ok(number);
        }
        let number = self.blocks.len() as u32;
        self.blocks.push(Block::new(0));
        self.empty.reserve(self.blocks.len() - self.empty.len());
        Ok(number)
    }

    /// Puts a block at the front of its class's blocks with free places.
    fn link(&mut self, number: u32) {
        let class = usize::from(self.blocks[number as usize].class);
        let next = std::mem::replace(&mut self.open[class], number);
        self.blocks[number as usize].links = [NONE, next];
        if let Some(next) = self.blocks.get_mut(next as usize) {
            next.links[0] = number;
        }
    }

    /// Takes it out there.
    fn unlink(&mut self, number: u32) {
        let block = &mut self.blocks[number as usize];
        let ([before, next], class) = (block.links, usize::from(block.class));
        block.links = [NONE; 2];
        match self.blocks.get_mut(before as usize) {
            Some(before) => before.links[1] = next,
            None => self.open[class] = next,
        }
        if let Some(next) = self.blocks.get_mut(next as usize) {
            next.links[0] = before;
        }
    }

    /// Changes a byte of the page under `handle`, as failing memory would.
    #[cfg(test)]
    pub(crate) fn damage(&mut self, handle: StoreHandle, byte: usize) {
        let range = self.range(handle);
        if let Some(byte) = self.slab.get_mut(range).and_then(|place| place.get_mut(byte)) {
            *byte ^= 0x10;
        }
    }
}

/// The length that a place says its page has.
fn length_of(place: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([place[0], place[1]]))
}
