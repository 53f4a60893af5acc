//! Keyed BLAKE3 of pages: one at a time or, with the feature `lanes`, many side by side.

use crate::page::Page;

/// Bytes of a digest.
const LENGTH: usize = 32;

/// A digest.
pub(crate) type Digest = [u8; LENGTH];

/// A hasher with one key.
#[derive(Clone)]
pub(crate) struct Digester {
    key: [u8; LENGTH],
    #[cfg(feature = "lanes")]
    lanes: crate::lanes::Lanes,
}

impl Digester {
    /// A hasher with `key`.
    pub(crate) fn new(key: [u8; LENGTH]) -> Self {
        Self {
            key,
            #[cfg(feature = "lanes")]
            lanes: crate::lanes::Lanes::new(&key),
        }
    }

    /// The digest of one page.
    pub(crate) fn one(&self, page: &Page) -> Digest {
        *blake3::keyed_hash(&self.key, page).as_bytes()
    }

    /// The digests of `pages`, in order.
    #[cfg(not(feature = "lanes"))]
    pub(crate) fn all(&self, pages: &[Page]) -> Vec<Digest> {
        pages.iter().map(|page| self.one(page)).collect()
    }

    /// The digests of `pages`, in order.
    #[cfg(feature = "lanes")]
    pub(crate) fn all(&self, pages: &[Page]) -> Vec<Digest> {
        use crate::lanes::{FEWEST, LANES};
        let mut digests = Vec::with_capacity(pages.len());
        for pages in pages.chunks(LANES) {
            if pages.len() < FEWEST {
                digests.extend(pages.iter().map(|page| self.one(page)));
            } else {
                let roots = self.lanes.side_by_side(pages);
                digests.extend_from_slice(&roots[..pages.len()]);
            }
        }
        digests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_digest_is_what_the_plain_crate_says() {
        let digester = Digester::new(std::array::from_fn(|i| i as u8 ^ 0x5a));
        let pages: Vec<Page> = (0..37u32)
            .map(|number| std::array::from_fn(|i| (i as u32 * 31 + number * 7 + i as u32 / 256) as u8))
            .collect();
        for count in 0..=pages.len() {
            let plain: Vec<Digest> = pages[..count].iter().map(|page| digester.one(page)).collect();
            assert_eq!(digester.all(&pages[..count]), plain, "{count} pages");
        }
    }
}
