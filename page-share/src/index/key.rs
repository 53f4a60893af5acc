//! The secret under which an index hashes what it is asked about.

use std::hash::{BuildHasher, Hasher};
use std::io;

use crate::hash::fill_random;

/// A random key that never leaves the manager: a guest's process learns nothing of what it makes of a sketch, but how long
/// an answer took. Two multiplications under four secret words suffice against that, and cost a fifth of SipHash.
pub(crate) struct Key([u64; 4]);

impl Key {
    /// A key that no other index has.
    ///
    /// # Errors
    /// When the kernel refuses random bytes.
    pub(crate) fn random() -> io::Result<Self> {
        let mut bytes = [0; 32];
        fill_random(&mut bytes)?;
        let (words, _) = bytes.as_chunks::<8>();
        Ok(Self(std::array::from_fn(|word| u64::from_le_bytes(words[word]))))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(secret)")
    }
}

impl BuildHasher for Key {
    type Hasher = Mixer;

    fn build_hasher(&self) -> Mixer {
        Mixer { key: self.0, hash: 0 }
    }
}

/// Hashes under a [`Key`].
pub(crate) struct Mixer {
    key: [u64; 4],
    hash: u64,
}

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    fn write_u64(&mut self, word: u64) {
        let [a, b, c, d] = self.key;
        self.hash = product(product(self.hash ^ word ^ a, b) ^ c, d);
    }

    fn finish(&self) -> u64 {
        self.hash
    }
}

/// Both halves of a product: each bit of it depends on all bits of both.
fn product(one: u64, other: u64) -> u64 {
    let product = u128::from(one) * u128::from(other);
    product as u64 ^ (product >> 64) as u64
}
