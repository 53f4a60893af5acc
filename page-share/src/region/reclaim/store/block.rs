//! Blocks of memory, cut into places of one size each.

/// Bytes by which size classes differ.
pub(super) const STEP: usize = 64;

/// Bytes in a block; all places of a block are of one class.
pub(super) const BLOCK: usize = 64 << 10;

/// Words of 64 bits that say which places of a block are in use.
const WORDS: usize = BLOCK / STEP / 64;

/// No block.
pub(super) const NONE: u32 = u32::MAX;

/// Places of one size.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) class: u8,
    pub(super) live: u16,
    /// Neighbours in the list of blocks of its class that have free places.
    pub(super) links: [u32; 2],
    used: [u64; WORDS],
}

impl Block {
    pub(super) fn new(class: usize) -> Self {
        Self {
            class: class as u8,
            live: 0,
            links: [NONE; 2],
            used: [0; WORDS],
        }
    }

    /// Bytes in each place.
    pub(super) fn size(&self) -> usize {
        (usize::from(self.class) + 1) * STEP
    }

    pub(super) fn places(&self) -> usize {
        BLOCK / self.size()
    }

    pub(super) fn is_full(&self) -> bool {
        usize::from(self.live) == self.places()
    }

    pub(super) fn has(&self, place: usize) -> bool {
        self.used[place / 64] & 1 << (place % 64) != 0
    }

    pub(super) fn flip(&mut self, place: usize) {
        self.used[place / 64] ^= 1 << (place % 64);
    }

    /// The lowest free place.
    pub(super) fn free_place(&self) -> Option<usize> {
        let free = |(at, word): (usize, &u64)| at * 64 + word.trailing_ones() as usize;
        let word = self.used.iter().enumerate().find(|(_, word)| **word != u64::MAX);
        word.map(free).filter(|&place| place < self.places())
    }
}
