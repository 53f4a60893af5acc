//! From pages to compressed ones, each with its length and checksum.

use std::fmt;
use std::sync::LazyLock;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use crate::hash::{DomainKey, PageHasher};
use crate::page::{PAGE_SIZE, Page};

/// Bytes before each compressed page: its length, 16 bits, and its checksum, 48 bits.
pub(super) const HEADER: usize = 8;

/// Largest place for a compressed page: three quarters of a page. What does not fit belongs into a file.
pub(super) const LARGEST: usize = PAGE_SIZE * 3 / 4;

/// Most bytes a page may compress to and be taken.
pub const COMPRESSED_LIMIT: usize = LARGEST - HEADER;

pub(super) static SUMS: LazyLock<PageHasher> =
    LazyLock::new(|| PageHasher::new(&DomainKey::from_bytes([0; 32])));

/// Length and checksum of a page as they are kept before it.
pub(super) fn header(length: usize, page: &Page) -> [u8; HEADER] {
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
    pub(super) bytes: &'a [u8],
    pub(super) header: [u8; HEADER],
}

impl Compressed<'_> {
    /// Bytes it takes, never zero.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
}
