//! Compressed pages in memory: LZ4 in size classes of 64 bytes, every byte accounted.
//!
//! Compressing needs no store, so a scanner compresses first ([`Compressor`]) and holds a lock around
//! [`Store::insert`] only. [`Store::load`] and [`Store::remove`] never allocate, free or block, so that a fault handler
//! may call them; empty blocks go back to the allocator in [`Store::trim`] alone.

use std::fmt;

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use crate::page::{PAGE_SIZE, Page};

/// Bytes by which size classes differ.
const STEP: usize = 64;

/// Bytes of the length that precedes each compressed page.
const HEADER: usize = 2;

/// Largest place for a compressed page: three quarters of a page. What does not fit belongs into a file.
const LARGEST: usize = PAGE_SIZE * 3 / 4;

/// Most bytes a page may compress to and be taken.
pub const COMPRESSED_LIMIT: usize = LARGEST - HEADER;

/// Bytes in a block; all places of a block are of one class.
const BLOCK: usize = 64 << 10;

const CLASSES: usize = LARGEST / STEP;

/// Turns pages into compressed ones. Holds 12 KiB of working memory.
pub struct Compressor {
    table: CompressTable,
    output: Vec<u8>,
}

impl Compressor {
    /// A compressor.
    pub fn new() -> Self {
        Self {
            table: CompressTable::small(),
            output: vec![0; get_maximum_output_size(PAGE_SIZE)],
        }
    }

    /// The compressed form of `page`, or `None` when it needs more than [`COMPRESSED_LIMIT`] bytes.
    pub fn compress(&mut self, page: &Page) -> Option<Compressed<'_>> {
        let length = compress_into_with_table(page, &mut self.output, &mut self.table).ok()?;
        (length <= COMPRESSED_LIMIT).then(|| Compressed(&self.output[..length]))
    }
}

impl Default for Compressor {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

/// A page as [`Compressor`] made it.
#[derive(Debug, Clone, Copy)]
pub struct Compressed<'a>(&'a [u8]);

impl Compressed<'_> {
    /// Bytes it takes, never zero.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }
}

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

    fn new(class: usize, block: usize, place: usize) -> Self {
        Self((class as u32) << 26 | (block as u32) << 10 | place as u32)
    }

    fn class(self) -> usize {
        (self.0 >> 26) as usize
    }

    fn block(self) -> usize {
        (self.0 >> 10 & 0xffff) as usize
    }

    fn place(self) -> usize {
        (self.0 & 0x3ff) as usize
    }
}

/// Why a store did not do as told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
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
    /// The stored bytes do not decompress to a page: memory failed, or a handle was mixed up.
    #[error("the compressed page under {0:?} is damaged")]
    Damaged(StoreHandle),
}

/// Compressed pages.
#[derive(Debug)]
pub struct Store {
    classes: Vec<Class>,
    limit: usize,
    pages: usize,
    stored: usize,
}

/// All places of one size.
#[derive(Debug, Default)]
struct Class {
    blocks: Vec<Option<Block>>,
    /// Free places, with room for all that there are: giving one back must not allocate.
    free: Vec<StoreHandle>,
}

#[derive(Debug)]
struct Block {
    bytes: Box<[u8]>,
    live: u16,
}

impl Store {
    /// An empty store that may take `limit` bytes of memory in all.
    pub fn new(limit: usize) -> Self {
        let mut classes = Vec::new();
        classes.resize_with(CLASSES, Class::default);
        Self {
            classes,
            limit,
            pages: 0,
            stored: 0,
        }
    }

    /// Pages in the store.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Bytes of compressed content, without headers, rounding and free places.
    pub fn stored_bytes(&self) -> usize {
        self.stored
    }

    /// Every byte of heap memory the store has, free places and its own lists included.
    pub fn reserved_bytes(&self) -> usize {
        let classes: usize = self.classes.iter().map(Class::reserved_bytes).sum();
        classes + self.classes.capacity() * size_of::<Class>()
    }

    /// Keeps `page`.
    ///
    /// # Errors
    /// [`StoreError::Full`].
    pub fn insert(&mut self, page: Compressed<'_>) -> Result<StoreHandle, StoreError> {
        let number = (HEADER + page.bytes()).div_ceil(STEP) - 1;
        if self.classes[number].free.is_empty() {
            self.add_block(number)?;
        }
        let class = &mut self.classes[number];
        let handle = class.free.pop().ok_or(StoreError::Full {
            reserved: 0,
            limit: self.limit,
        })?;
        if let Some(block) = &mut class.blocks[handle.block()] {
            block.live += 1;
        }
        if let Some(place) = class.place_mut(handle) {
            place[..HEADER].copy_from_slice(&(page.bytes() as u16).to_le_bytes());
            place[HEADER..HEADER + page.bytes()].copy_from_slice(page.0);
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
        let compressed = self.compressed(handle)?;
        match decompress_into(compressed, page) {
            Ok(PAGE_SIZE) => Ok(()),
            _ => Err(StoreError::Damaged(handle)),
        }
    }

    /// Forgets a page.
    ///
    /// # Errors
    /// [`StoreError::Unknown`].
    pub fn remove(&mut self, handle: StoreHandle) -> Result<(), StoreError> {
        let length = self.compressed(handle)?.len();
        let class = &mut self.classes[handle.class()];
        if let Some(place) = class.place_mut(handle) {
            place[..HEADER].fill(0);
        }
        if let Some(block) = &mut class.blocks[handle.block()] {
            block.live -= 1;
        }
        class.free.push(handle);
        self.pages -= 1;
        self.stored -= length;
        Ok(())
    }

    /// Gives the memory of empty blocks back.
    pub fn trim(&mut self) {
        for class in &mut self.classes {
            class.trim();
        }
    }

    fn compressed(&self, handle: StoreHandle) -> Result<&[u8], StoreError> {
        let class = self.classes.get(handle.class());
        let place = class
            .and_then(|class| class.place(handle))
            .ok_or(StoreError::Unknown(handle))?;
        let length = usize::from(u16::from_le_bytes([place[0], place[1]]));
        match place.get(HEADER..HEADER + length) {
            Some(_) if length == 0 => Err(StoreError::Unknown(handle)),
            Some(compressed) => Ok(compressed),
            None => Err(StoreError::Damaged(handle)),
        }
    }

    fn add_block(&mut self, number: usize) -> Result<(), StoreError> {
        let reserved = self.reserved_bytes();
        let full = StoreError::Full {
            reserved,
            limit: self.limit,
        };
        let class = &mut self.classes[number];
        let places = BLOCK / ((number + 1) * STEP);
        let index = class.blocks.iter().position(Option::is_none);
        let index = index.unwrap_or(class.blocks.len());
        let lists = places * size_of::<StoreHandle>() + size_of::<Option<Block>>();
        if reserved + BLOCK + lists > self.limit || index > usize::from(u16::MAX) {
            return Err(full);
        }
        class.add_block(number, index, places);
        Ok(())
    }
}

impl Class {
    fn reserved_bytes(&self) -> usize {
        let blocks = self.blocks.iter().flatten().count();
        blocks * BLOCK
            + self.blocks.capacity() * size_of::<Option<Block>>()
            + self.free.capacity() * size_of::<StoreHandle>()
    }

    fn add_block(&mut self, number: usize, index: usize, places: usize) {
        let block = Block {
            bytes: vec![0; BLOCK].into_boxed_slice(),
            live: 0,
        };
        if index == self.blocks.len() {
            self.blocks.reserve_exact(1);
            self.blocks.push(None);
        }
        self.blocks[index] = Some(block);
        let all = self.blocks.iter().flatten().count() * places;
        self.free.reserve_exact(all - self.free.len());
        // Lowest place first, and full blocks before fresh ones.
        let fresh = (0..places).rev();
        let fresh = fresh.map(|place| StoreHandle::new(number, index, place));
        self.free.splice(0..0, fresh);
    }

    fn range(handle: StoreHandle) -> std::ops::Range<usize> {
        let size = (handle.class() + 1) * STEP;
        let start = handle.place() * size;
        start..start + size
    }

    fn place(&self, handle: StoreHandle) -> Option<&[u8]> {
        let block = self.blocks.get(handle.block())?.as_ref()?;
        block.bytes.get(Self::range(handle))
    }

    fn place_mut(&mut self, handle: StoreHandle) -> Option<&mut [u8]> {
        let block = self.blocks.get_mut(handle.block())?.as_mut()?;
        block.bytes.get_mut(Self::range(handle))
    }

    fn trim(&mut self) {
        for block in &mut self.blocks {
            if block.as_ref().is_some_and(|block| block.live == 0) {
                *block = None;
            }
        }
        let blocks = &self.blocks;
        self.free.retain(|handle| blocks[handle.block()].is_some());
        while self.blocks.last().is_some_and(Option::is_none) {
            self.blocks.pop();
        }
        self.blocks.shrink_to_fit();
        let places = self
            .blocks
            .iter()
            .flatten()
            .map(|block| usize::from(block.live))
            .sum::<usize>()
            + self.free.len();
        self.free.shrink_to(places);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::fill_random;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// A page of which `random` bytes do not compress and the rest does.
    fn page(seed: u8, random: usize) -> Page {
        let mut page = [seed; PAGE_SIZE];
        fill_random(&mut page[..random]).unwrap();
        page
    }

    #[test]
    fn a_page_that_does_not_shrink_enough_is_refused() {
        let mut compressor = Compressor::new();
        assert!(compressor.compress(&page(0, PAGE_SIZE)).is_none());
        assert!(compressor.compress(&page(0, LARGEST)).is_none());
        let fits = compressor.compress(&page(0, LARGEST - 64)).unwrap();
        assert!(fits.bytes() <= COMPRESSED_LIMIT);
        assert!(compressor.compress(&page(7, 0)).unwrap().bytes() < 64);
    }

    #[test]
    fn a_handle_that_means_nothing_is_an_error() {
        let (mut store, mut compressor) = (Store::new(1 << 20), Compressor::new());
        let handle = store.insert(compressor.compress(&page(1, 0)).unwrap()).unwrap();
        let mut out = [0; PAGE_SIZE];
        for bits in [
            0,
            1,
            handle.bits() ^ 1,
            handle.bits() ^ 1 << 10,
            handle.bits() ^ 1 << 26,
            u32::MAX,
        ] {
            let wrong = StoreHandle::from_bits(bits);
            if wrong != handle {
                assert_eq!(store.load(wrong, &mut out), Err(StoreError::Unknown(wrong)));
                assert_eq!(store.remove(wrong), Err(StoreError::Unknown(wrong)));
            }
        }
        store.remove(handle).unwrap();
        assert_eq!(store.remove(handle), Err(StoreError::Unknown(handle)));
    }

    #[test]
    fn damaged_memory_is_noticed_or_at_least_never_panics() {
        let (mut store, mut compressor) = (Store::new(1 << 20), Compressor::new());
        let handle = store.insert(compressor.compress(&page(1, 500)).unwrap()).unwrap();
        let mut out = [0; PAGE_SIZE];
        for byte in 0..600 {
            let place = store.classes[handle.class()].place_mut(handle).unwrap();
            if let Some(byte) = place.get_mut(byte) {
                *byte ^= 0xff;
                let _ = store.load(handle, &mut out);
                let place = store.classes[handle.class()].place_mut(handle).unwrap();
                place[..HEADER + 2].reverse();
                let _ = store.load(handle, &mut out);
            }
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_map_within_its_limit(
            steps in prop::collection::vec((0usize..40, 0usize..PAGE_SIZE, any::<u8>()), 1..300),
        ) {
            const LIMIT: usize = 2 << 20;
            let (mut store, mut compressor) = (Store::new(LIMIT), Compressor::new());
            let mut map: HashMap<usize, (StoreHandle, Page)> = HashMap::new();
            for (name, random, seed) in steps {
                if let Some((handle, expected)) = map.remove(&name) {
                    let mut out = [0; PAGE_SIZE];
                    store.load(handle, &mut out).unwrap();
                    prop_assert_eq!(out, expected);
                    store.remove(handle).unwrap();
                } else {
                    let content = page(seed, random);
                    if let Some(compressed) = compressor.compress(&content) {
                        match store.insert(compressed) {
                            Ok(handle) => { map.insert(name, (handle, content)); }
                            Err(error) => {
                                let full = matches!(error, StoreError::Full { .. });
                                prop_assert!(full);
                            }
                        }
                    }
                }
                if seed < 8 {
                    store.trim();
                }
                prop_assert_eq!(store.pages(), map.len());
                prop_assert!(store.reserved_bytes() <= LIMIT);
            }
            for (handle, _) in map.into_values() {
                store.remove(handle).unwrap();
            }
            store.trim();
            prop_assert_eq!(store.stored_bytes(), 0);
            prop_assert_eq!(store.reserved_bytes(), Store::new(LIMIT).reserved_bytes());
        }
    }
}
