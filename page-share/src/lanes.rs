//! Keyed BLAKE3 of several pages side by side, each SIMD lane on another page: what `blake3::keyed_hash` says of each.
//!
//! A page is four chunks, which fill only a part of wide registers; sixteen pages fill them all. The tree of four chunks
//! is put together here from the specification (section 2.1 and 2.4 of the BLAKE3 paper), with the crate's compression
//! of many inputs. That function is public but not promised to stay, hence the feature with its exact version in the
//! manifest, and the test of [`crate::digest`] that compares every digest.

use blake3::IncrementCounter;
use blake3::platform::Platform;

use crate::digest::Digest;
use crate::page::Page;

/// Bytes of a chaining value and of a digest.
const VALUE: usize = 32;
/// Bytes of a chunk, the leaf of the tree.
const CHUNK: usize = blake3::CHUNK_LEN;
/// Pages side by side: the lanes of the widest registers.
pub(crate) const LANES: usize = 16;
/// Fewer pages are hashed faster one after the other, each with its four chunks side by side.
pub(crate) const FEWEST: usize = 5;

const CHUNK_START: u8 = 1 << 0;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;
const KEYED_HASH: u8 = 1 << 4;

/// Two chaining values, the input of a parent.
type Pair = [u8; 2 * VALUE];

/// A hasher with one key.
#[derive(Clone)]
pub(crate) struct Lanes {
    platform: Platform,
    words: [u32; VALUE / 4],
}

impl Lanes {
    /// A hasher with `key`.
    pub(crate) fn new(key: &[u8; VALUE]) -> Self {
        let (words, _) = key.as_chunks::<4>();
        Self {
            platform: Platform::detect(),
            words: std::array::from_fn(|word| u32::from_le_bytes(words[word])),
        }
    }

    /// The digests of at most [`LANES`] pages, in order; what follows them is of no page.
    pub(crate) fn side_by_side(&self, pages: &[Page]) -> [Digest; LANES] {
        let chunk = |number: usize| {
            let inputs = pages.iter().map(|page| &page.as_chunks::<CHUNK>().0[number]);
            let leaf = (KEYED_HASH, CHUNK_START, CHUNK_END);
            self.compress(inputs, number as u64, leaf)
        };
        let (left, right) = (
            self.parents(&chunk(0), &chunk(1), 0),
            self.parents(&chunk(2), &chunk(3), 0),
        );
        self.parents(&left, &right, ROOT)
    }

    /// The parents of children that lie side by side.
    fn parents(&self, left: &[Digest; LANES], right: &[Digest; LANES], flags: u8) -> [Digest; LANES] {
        let pairs: [Pair; LANES] = std::array::from_fn(|lane| {
            let mut pair = [0; 2 * VALUE];
            pair[..VALUE].copy_from_slice(&left[lane]);
            pair[VALUE..].copy_from_slice(&right[lane]);
            pair
        });
        self.compress(pairs.iter(), 0, (KEYED_HASH | PARENT | flags, 0, 0))
    }

    /// Compresses up to [`LANES`] inputs with one counter; the flags are those of all blocks, of the first, of the last.
    fn compress<'a, const N: usize>(
        &self,
        inputs: impl Iterator<Item = &'a [u8; N]>,
        counter: u64,
        (all, first, last): (u8, u8, u8),
    ) -> [Digest; LANES] {
        let mut values = [[0; VALUE]; LANES];
        let mut lanes = [&[0; N]; LANES];
        let mut count = 0;
        for (lane, input) in lanes.iter_mut().zip(inputs) {
            *lane = input;
            count += 1;
        }
        self.platform.hash_many(
            &lanes[..count],
            &self.words,
            counter,
            IncrementCounter::No,
            all,
            first,
            last,
            values.as_flattened_mut(),
        );
        values
    }
}
