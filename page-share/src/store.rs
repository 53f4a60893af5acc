//! Compressed pages in memory: LZ4 in size classes of 64 bytes, every byte accounted, every page with a checksum.
//!
//! Compressing needs no store, so a scanner compresses first ([`Compressor`]) and holds a lock around
//! [`Store::insert`] only. [`Store::load`] and [`Store::remove`] never allocate, free or block, so that a fault handler
//! may call them; the memory of empty blocks goes back to the kernel in [`Store::trim`] alone.
//!
//! Memory fails, and whoever serves a guest from here must not hand out what is left of a page: a page comes back only
//! if it has the checksum of the page that went in. It is the sketch under a fixed key: nobody but this process can
//! write here, so it need not keep anybody from forging.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::LazyLock;

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use crate::hash::{DomainKey, PageHasher};
use crate::page::{PAGE_SIZE, Page};
use crate::slab::Slab;

/// Bytes by which size classes differ.
const STEP: usize = 64;

/// Bytes before each compressed page: its length, 16 bits, and its checksum, 48 bits.
const HEADER: usize = 8;

/// Largest place for a compressed page: three quarters of a page. What does not fit belongs into a file.
const LARGEST: usize = PAGE_SIZE * 3 / 4;

/// Most bytes a page may compress to and be taken.
pub const COMPRESSED_LIMIT: usize = LARGEST - HEADER;

/// Bytes in a block; all places of a block are of one class.
const BLOCK: usize = 64 << 10;

const CLASSES: usize = LARGEST / STEP;

/// Words of 64 bits that say which places of a block are in use.
const WORDS: usize = BLOCK / STEP / 64;

/// No block.
const NONE: u32 = u32::MAX;

static SUMS: LazyLock<PageHasher> = LazyLock::new(|| PageHasher::new(&DomainKey::from_bytes([0; 32])));

/// Length and checksum of a page as they are kept before it.
fn header(length: usize, page: &Page) -> [u8; HEADER] {
    (length as u64 | SUMS.sketch(page).get() << 16).to_le_bytes()
}

/// Turns pages into compressed ones. Holds 12 KiB of working memory.
pub struct Compressor {
    table: CompressTable,
    output: Vec<u8>,
}

impl Compressor {
    /// A compressor.
    pub fn new() -> Self {
        LazyLock::force(&SUMS);
        Self {
            table: CompressTable::small(),
            output: vec![0; get_maximum_output_size(PAGE_SIZE)],
        }
    }

    /// The compressed form of `page`, or `None` when it needs more than [`COMPRESSED_LIMIT`] bytes.
    pub fn compress(&mut self, page: &Page) -> Option<Compressed<'_>> {
        let length = compress_into_with_table(page, &mut self.output, &mut self.table).ok()?;
        (length <= COMPRESSED_LIMIT).then(|| Compressed {
            bytes: &self.output[..length],
            header: header(length, page),
        })
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
pub struct Compressed<'a> {
    bytes: &'a [u8],
    header: [u8; HEADER],
}

impl Compressed<'_> {
    /// Bytes it takes, never zero.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
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

/// Places of one size.
#[derive(Debug, Clone)]
struct Block {
    class: u8,
    live: u16,
    /// Neighbours in the list of blocks of its class that have free places.
    links: [u32; 2],
    used: [u64; WORDS],
}

impl Block {
    fn new(class: usize) -> Self {
        Self {
            class: class as u8,
            live: 0,
            links: [NONE; 2],
            used: [0; WORDS],
        }
    }

    /// Bytes in each place.
    fn size(&self) -> usize {
        (usize::from(self.class) + 1) * STEP
    }

    fn places(&self) -> usize {
        BLOCK / self.size()
    }

    fn is_full(&self) -> bool {
        usize::from(self.live) == self.places()
    }

    fn has(&self, place: usize) -> bool {
        self.used[place / 64] & 1 << (place % 64) != 0
    }

    fn flip(&mut self, place: usize) {
        self.used[place / 64] ^= 1 << (place % 64);
    }

    /// The lowest free place.
    fn free_place(&self) -> Option<usize> {
        let free = |(at, word): (usize, &u64)| at * 64 + word.trailing_ones() as usize;
        let word = self.used.iter().enumerate().find(|(_, word)| **word != u64::MAX);
        word.map(free).filter(|&place| place < self.places())
    }
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
        let (mut store, mut compressor) = (Store::new(1 << 20).unwrap(), Compressor::new());
        let handle = store.insert(compressor.compress(&page(1, 0)).unwrap()).unwrap();
        let mut out = [0; PAGE_SIZE];
        for bits in [
            0,
            1,
            handle.bits() ^ 1,
            handle.bits() ^ 1 << 10,
            handle.bits() ^ 1 << 26,
            handle.bits() | 0x3ff,
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
    fn no_damaged_bit_of_a_stored_page_makes_wrong_bytes() {
        let (mut store, mut compressor) = (Store::new(1 << 20).unwrap(), Compressor::new());
        let content = page(1, 500);
        let compressed = compressor.compress(&content).unwrap();
        let bytes = HEADER + compressed.bytes();
        let handle = store.insert(compressed).unwrap();
        let mut out = [0; PAGE_SIZE];
        let mut noticed = 0;
        for (byte, bit) in (0..bytes).flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
            let flip = |store: &mut Store| {
                let range = store.range(handle);
                store.slab.get_mut(range).unwrap()[byte] ^= 1 << bit;
            };
            flip(&mut store);
            match store.load(handle, &mut out) {
                // Several streams can mean the same page: one that repeats itself from further back, for instance.
                Ok(()) => assert!(out == content, "bit {bit} of byte {byte}"),
                Err(error) => noticed += usize::from(error == StoreError::Damaged(handle)),
            }
            flip(&mut store);
        }
        assert!(noticed > bytes * 8 - 100, "{noticed} of {bytes} bytes");
        store.load(handle, &mut out).unwrap();
        assert_eq!(out, content);
        // A damaged page can be forgotten like any other.
        store.damage(handle, 1);
        store.remove(handle).unwrap();
        assert_eq!((store.pages(), store.stored_bytes()), (0, 0));
    }

    #[test]
    fn another_page_in_its_place_is_noticed() {
        let (mut store, mut compressor) = (Store::new(1 << 20).unwrap(), Compressor::new());
        let one = store.insert(compressor.compress(&page(1, 0)).unwrap()).unwrap();
        let two = store.insert(compressor.compress(&page(2, 0)).unwrap()).unwrap();
        let other = store.place(two).unwrap()[HEADER..].to_vec();
        let range = store.range(one);
        store.slab.get_mut(range).unwrap()[HEADER..].copy_from_slice(&other);
        let mut out = [0; PAGE_SIZE];
        assert_eq!(store.load(one, &mut out), Err(StoreError::Damaged(one)));
    }

    /// Resident bytes of the store's memory, as the kernel counts.
    fn resident(store: &Store) -> usize {
        let start = store.slab.get(0..1).unwrap().as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let line = maps
            .lines()
            .skip_while(|line| !line.starts_with(&format!("{start:x}-")));
        let rss = line.skip(1).find(|line| line.starts_with("Rss:")).unwrap();
        rss.split_ascii_whitespace()
            .nth(1)
            .unwrap()
            .parse::<usize>()
            .unwrap()
            * 1024
    }

    #[test]
    fn trimming_gives_the_memory_of_empty_blocks_back_and_it_can_be_used_again() {
        let (mut store, mut compressor) = (Store::new(64 << 20).unwrap(), Compressor::new());
        let mut fill = |store: &mut Store| -> Vec<StoreHandle> {
            let compressed = (0..10_000).map(|seed| {
                let content = page(seed as u8, 1000);
                store.insert(compressor.compress(&content).unwrap()).unwrap()
            });
            compressed.collect()
        };
        let handles = fill(&mut store);
        let full = resident(&store);
        assert!(full >= 10_000_000 && full <= store.reserved_bytes(), "{full}");
        handles[1..]
            .iter()
            .for_each(|handle| store.remove(*handle).unwrap());
        assert_eq!(resident(&store), full, "nothing goes back by itself");
        assert_eq!(store.trim(16), 16 * BLOCK, "no more than was asked for");
        while store.trim(16) > 0 {}
        assert!(resident(&store) <= BLOCK, "{} left of {full}", resident(&store));
        assert_eq!(store.empty_bytes(), 0);
        let mut out = [0; PAGE_SIZE];
        store.load(handles[0], &mut out).unwrap();
        let again = fill(&mut store);
        again
            .iter()
            .for_each(|handle| store.load(*handle, &mut out).unwrap());
        assert!(resident(&store) <= full + BLOCK);
    }

    proptest! {
        #[test]
        fn behaves_like_a_map_within_its_limit(
            steps in prop::collection::vec((0usize..40, 0usize..PAGE_SIZE, any::<u8>()), 1..300),
        ) {
            const LIMIT: usize = 2 << 20;
            let (mut store, mut compressor) = (Store::new(LIMIT).unwrap(), Compressor::new());
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
                    store.trim(usize::from(seed));
                }
                prop_assert_eq!(store.pages(), map.len());
                prop_assert!(store.reserved_bytes() <= LIMIT);
            }
            for (handle, _) in map.into_values() {
                store.remove(handle).unwrap();
            }
            prop_assert_eq!(store.stored_bytes(), 0);
            store.trim(LIMIT / BLOCK);
            prop_assert!(store.reserved_bytes() < BLOCK);
        }
    }
}
