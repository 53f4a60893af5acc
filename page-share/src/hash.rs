//! A page's name inside its sharing domain: a cheap 64-bit [`Sketch`] and a BLAKE3 [`PageHash`], both keyed.
//!
//! A scanner sketches every quiet page and only the sketch travels; the manager alone hashes, once for each page
//! that enters the pool and over its own copy. Contents seen once therefore never pay for BLAKE3, and no hash that
//! a guest's process computed is ever believed. Both keys come from the domain's, so equal pages of two domains
//! have unrelated names.
//!
//! The sketch is NH over 64-bit words (Black et al., UMAC, CRYPTO '99; the 64-bit form is VMAC's) followed by a
//! strongly universal multiply-shift (Dietzfelbinger; Thorup's survey). Two pages that were chosen without knowing
//! the key collide with a probability of at most 2^-63, whatever the pages are: a guest cannot craft twins. A guest's
//! *process* knows the key and can; the pool then keeps whichever came first and refuses the other, and the victims'
//! comparisons fail. All that is lost is sharing, inside that domain.

use std::fmt;
use std::io;

use crate::digest::Digester;
use crate::page::{PAGE_SIZE, Page};

/// Words of 64 bits in a page.
const WORDS: usize = PAGE_SIZE / 8;

/// The secret that makes a sharing domain: its holder can name the domain's pages.
///
/// Never printed: `Debug` shows no key bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct DomainKey([u8; 32]);

impl DomainKey {
    /// A fresh key from the kernel's random source.
    ///
    /// # Errors
    /// When the kernel refuses random bytes.
    pub fn random() -> io::Result<Self> {
        let mut key = [0; 32];
        fill_random(&mut key)?;
        Ok(Self(key))
    }

    /// The key with these bytes, as received from the manager.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret itself, for the one message that hands it to a guest's process.
    pub(crate) const fn reveal(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for DomainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DomainKey(secret)")
    }
}

/// Fills `bytes` from getrandom(2).
pub(crate) fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The cheap name of a page's content: what scanners report and the index is keyed by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sketch(u64);

impl Sketch {
    /// The sketch with these bits, as received from a guest's process.
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Sketch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sketch({:#018x})", self.0)
    }
}

/// The collision-resistant name of a page's content: keyed BLAKE3, cut to 128 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageHash([u8; 16]);

impl PageHash {
    /// The bytes of the hash.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    fn of(digest: &[u8; 32]) -> Self {
        let (half, _) = digest.as_chunks::<16>();
        Self(half[0])
    }
}

impl fmt::Debug for PageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageHash({:#034x})", u128::from_be_bytes(self.0))
    }
}

/// Names pages for one sharing domain. Holds 4 KiB of key; make one and keep it.
#[derive(Clone)]
pub struct PageHasher {
    nh: Box<[u64; WORDS]>,
    fold: [u128; 3],
    digester: Digester,
    zeros: Sketch,
}

impl PageHasher {
    /// The hasher of the domain that `key` belongs to.
    pub fn new(key: &DomainKey) -> Self {
        let blake3 = blake3::derive_key("levy page-share 2026 page hash", key.reveal());
        let mut stream = blake3::Hasher::new_derive_key("levy page-share 2026 page sketch")
            .update(key.reveal())
            .finalize_xof();
        let mut nh = Box::new([0; WORDS]);
        for word in nh.iter_mut() {
            let mut bytes = [0; 8];
            stream.fill(&mut bytes);
            *word = u64::from_le_bytes(bytes);
        }
        let fold = std::array::from_fn(|_| {
            let mut bytes = [0; 16];
            stream.fill(&mut bytes);
            u128::from_le_bytes(bytes)
        });
        let zeros = Sketch(0);
        let mut hasher = Self {
            nh,
            fold,
            digester: Digester::new(blake3),
            zeros,
        };
        hasher.zeros = hasher.sketch(&[0; PAGE_SIZE]);
        hasher
    }

    /// The sketch of a page of zeros.
    pub(crate) fn of_zeros(&self) -> Sketch {
        self.zeros
    }

    /// The sketch of `page`.
    pub fn sketch(&self, page: &Page) -> Sketch {
        let (words, _) = page.as_chunks::<8>();
        // Four sums side by side: one alone would wait for its own carry at every step.
        let [sums] = self.sums::<1, 4>(|_, word| u64::from_le_bytes(words[word]));
        self.fold(sums)
    }

    /// The sketches of `N` pages side by side, whose words, little-endian, `load` gives by page and word: more memory is
    /// on its way at a time than for one page.
    #[inline]
    pub(crate) fn sketches<const N: usize>(&self, load: impl Fn(usize, usize) -> u64) -> [Sketch; N] {
        self.sums::<N, 1>(load).map(|sums| self.fold(sums))
    }

    /// NH of `N` pages, each in `SUMS` parts.
    #[inline]
    fn sums<const N: usize, const SUMS: usize>(
        &self,
        load: impl Fn(usize, usize) -> u64,
    ) -> [[u128; SUMS]; N] {
        let mut sums = [[0u128; SUMS]; N];
        let (keys, _) = self.nh.as_chunks::<8>();
        for (line, keys) in keys.iter().enumerate() {
            for (page, sums) in sums.iter_mut().enumerate() {
                for pair in 0..4 {
                    let low = load(page, line * 8 + pair * 2).wrapping_add(keys[pair * 2]);
                    let high = load(page, line * 8 + pair * 2 + 1).wrapping_add(keys[pair * 2 + 1]);
                    let sum = &mut sums[pair % SUMS];
                    *sum = sum.wrapping_add(u128::from(low) * u128::from(high));
                }
            }
        }
        sums
    }

    fn fold<const SUMS: usize>(&self, sums: [u128; SUMS]) -> Sketch {
        let sum = sums.iter().fold(0u128, |all, sum| all.wrapping_add(*sum));
        let low = self.fold[0].wrapping_mul(sum & u128::from(u64::MAX));
        let high = self.fold[1].wrapping_mul(sum >> 64);
        Sketch((low.wrapping_add(high).wrapping_add(self.fold[2]) >> 64) as u64)
    }

    /// The full hash of `page`.
    pub fn hash(&self, page: &Page) -> PageHash {
        PageHash::of(&self.digester.one(page))
    }

    /// The full hashes of `pages`, in order: the same as one by one, but in less time.
    pub fn hashes(&self, pages: &[Page]) -> Vec<PageHash> {
        self.digester.all(pages).iter().map(PageHash::of).collect()
    }
}

impl fmt::Debug for PageHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageHasher(secret)")
    }
}

/// Two different pages with one sketch, as an attacker who knows the key can make them.
#[cfg(test)]
pub(crate) fn twins(hasher: &PageHasher) -> [Page; 2] {
    // The second word cancels its key, so that the product is zero whatever the first word is.
    [1u64, 2].map(|first| {
        let mut page = [0; PAGE_SIZE];
        page[..8].copy_from_slice(&first.to_le_bytes());
        page[8..16].copy_from_slice(&hasher.nh[1].wrapping_neg().to_le_bytes());
        page
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_knows_the_key_can_make_twins_of_the_sketch_but_not_of_the_hash() {
        let hasher = hasher(1);
        let [one, two] = twins(&hasher);
        assert_ne!(one, two);
        assert_eq!(hasher.sketch(&one), hasher.sketch(&two));
        assert_ne!(hasher.hash(&one), hasher.hash(&two));
    }

    fn hasher(byte: u8) -> PageHasher {
        PageHasher::new(&DomainKey::from_bytes([byte; 32]))
    }

    #[test]
    fn every_single_bit_of_a_page_changes_both_names() {
        let hasher = hasher(1);
        let blank = [0; PAGE_SIZE];
        let (sketch, hash) = (hasher.sketch(&blank), hasher.hash(&blank));
        for bit in 0..PAGE_SIZE * 8 {
            let mut page = blank;
            page[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(hasher.sketch(&page), sketch, "bit {bit}");
            if bit % 61 == 0 {
                assert_ne!(hasher.hash(&page), hash, "bit {bit}");
            }
        }
    }

    #[test]
    fn pages_side_by_side_have_the_sketches_that_each_has_alone() {
        let hasher = hasher(3);
        let pages: [Page; 4] =
            std::array::from_fn(|page| std::array::from_fn(|i| (i * (31 + page) + i / 256) as u8));
        let sketches = hasher.sketches::<4>(|page, word| {
            let (words, _) = pages[page].as_chunks::<8>();
            u64::from_le_bytes(words[word])
        });
        assert_eq!(sketches, pages.map(|page| hasher.sketch(&page)));
    }

    #[test]
    fn words_that_change_places_change_the_sketch() {
        let hasher = hasher(2);
        let page: Page = std::array::from_fn(|i| (i / 8) as u8);
        for other in 1..WORDS {
            let mut swapped = page;
            let (first, second) = (0, other * 8);
            for byte in 0..8 {
                swapped.swap(first + byte, second + byte);
            }
            assert_eq!(hasher.sketch(&swapped) == hasher.sketch(&page), swapped == page);
        }
    }

    #[test]
    fn two_domains_name_the_same_page_differently() {
        let page = [7; PAGE_SIZE];
        assert_ne!(hasher(1).sketch(&page), hasher(2).sketch(&page));
        assert_ne!(hasher(1).hash(&page), hasher(2).hash(&page));
        assert_ne!(DomainKey::random().unwrap(), DomainKey::random().unwrap());
    }

    #[test]
    fn the_full_hash_is_keyed_blake3() {
        let key = DomainKey::from_bytes([3; 32]);
        let page: Page = std::array::from_fn(|i| (i * 31) as u8);
        let derived = blake3::derive_key("levy page-share 2026 page hash", &[3; 32]);
        let expected = blake3::Hasher::new_keyed(&derived).update(&page).finalize();
        assert_eq!(
            PageHasher::new(&key).hash(&page).as_bytes(),
            &expected.as_bytes()[..16]
        );
    }

    #[test]
    fn debug_output_never_holds_key_bytes() {
        let key = DomainKey::from_bytes([0xab; 32]);
        let text = format!("{key:?} {:?}", PageHasher::new(&key));
        assert!(
            !text.contains("171") && !text.to_lowercase().contains("ab"),
            "{text}"
        );
    }
}
