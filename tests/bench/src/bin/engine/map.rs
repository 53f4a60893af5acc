//! Page identity maps: which pages of some guests hold equal bytes. `tests/bench/data/README.md` has the format.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use lzma_rust2::XzReader;

/// The map that stands for "real Debian guests": all four at work.
const DEBIAN: &[u8] = include_bytes!("../../../data/same-work.idmap.xz");

/// Unpacked maps beyond this are refused: 32 guests of 8 GiB.
const MOST_PAGES: usize = 32 << 21;

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Nothing: the guest never touched it.
    Untouched,
    /// Zeros that occupy memory.
    Zero,
    /// Bytes; equal numbers are equal bytes.
    Number(u32),
}

/// Which pages of some guests hold which contents.
#[derive(Debug, Clone)]
pub(crate) struct IdentityMap {
    pages_per_guest: usize,
    /// One raw number per page, guest after guest.
    pages: Vec<u32>,
    /// LZ4 size of each content in units of 16 bytes, by content number.
    lz4: Vec<u8>,
}

/// The first raw number that means a content.
const FIRST_CONTENT: u32 = 2;

impl IdentityMap {
    /// The map in `file`, or the Debian guests' that this bench carries.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self> {
        let packed = match file {
            None => DEBIAN.to_vec(),
            Some(file) => {
                std::fs::read(file).with_context(|| format!("cannot read the map {}", file.display()))?
            }
        };
        let named = || file.map_or("the built-in map".to_owned(), |file| file.display().to_string());
        let mut bytes = Vec::new();
        XzReader::new(packed.as_slice(), false)
            .take(MOST_PAGES as u64 * 5 + 13)
            .read_to_end(&mut bytes)
            .with_context(|| format!("{} is not an xz file", named()))?;
        Self::parse(&bytes).with_context(|| format!("{} is not a page identity map", named()))
    }

    /// `guests` guests alike, every page another content.
    pub(crate) fn identical(guests: usize, pages_per_guest: usize) -> Self {
        let one = FIRST_CONTENT..FIRST_CONTENT + pages_per_guest as u32;
        Self {
            pages_per_guest,
            pages: std::iter::repeat_n(one, guests).flatten().collect(),
            // The mean of the Debian guests' unique pages.
            lz4: vec![128; pages_per_guest + FIRST_CONTENT as usize],
        }
    }

    /// This map `times` times over, with contents of its own in each copy.
    pub(crate) fn copies(&self, times: usize) -> Self {
        let contents = self.lz4.len() as u32 - FIRST_CONTENT;
        let renumber = |copy: u32| {
            move |&raw: &u32| {
                if raw < FIRST_CONTENT {
                    raw
                } else {
                    raw + copy * contents
                }
            }
        };
        let mut lz4 = vec![0; FIRST_CONTENT as usize];
        for _ in 0..times {
            lz4.extend_from_slice(&self.lz4[FIRST_CONTENT as usize..]);
        }
        Self {
            pages_per_guest: self.pages_per_guest,
            pages: (0..times as u32)
                .flat_map(|copy| self.pages.iter().map(renumber(copy)))
                .collect(),
            lz4,
        }
    }

    /// The first `pages` pages of each guest only.
    pub(crate) fn cut(&self, pages: usize) -> Self {
        let pages = pages.min(self.pages_per_guest);
        let kept = (0..self.guests()).flat_map(|guest| &self.guest(guest)[..pages]);
        Self {
            pages_per_guest: pages,
            pages: kept.copied().collect(),
            lz4: self.lz4.clone(),
        }
    }

    pub(crate) fn guests(&self) -> usize {
        self.pages.len() / self.pages_per_guest
    }

    pub(crate) fn pages_per_guest(&self) -> usize {
        self.pages_per_guest
    }

    /// What page `page` of guest `guest` holds.
    pub(crate) fn content(&self, guest: usize, page: usize) -> Content {
        match self.guest(guest)[page] {
            0 => Content::Untouched,
            1 => Content::Zero,
            number => Content::Number(number),
        }
    }

    /// How many bytes content `number` takes under LZ4 (a multiple of 16; 4080 means "or more").
    pub(crate) fn lz4_bytes(&self, number: u32) -> usize {
        usize::from(self.lz4[number as usize]) * 16
    }

    fn guest(&self, guest: usize) -> &[u32] {
        &self.pages[guest * self.pages_per_guest..][..self.pages_per_guest]
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let (magic, rest) = bytes.split_at_checked(4).context("it ends within the magic")?;
        ensure!(magic == b"LVID", "it starts with {magic:02x?}, not with LVID");
        let (guests, rest) = number(rest)?;
        let (pages_per_guest, rest) = number(rest)?;
        let total = (guests as usize)
            .checked_mul(pages_per_guest as usize)
            .filter(|total| (1..=MOST_PAGES).contains(total))
            .with_context(|| {
                format!(
                    "{guests} guests of {pages_per_guest} pages: 1 to {MOST_PAGES} pages in all are allowed"
                )
            })?;
        ensure!(
            rest.len() == total * 5,
            "{} bytes follow the header, {} belong there",
            rest.len(),
            total * 5
        );
        let (ids, sizes) = rest.split_at(total * 4);
        let pages: Vec<u32> = ids
            .as_chunks::<4>()
            .0
            .iter()
            .map(|word| u32::from_le_bytes(*word))
            .collect();
        let lz4 = sizes_by_content(&pages, sizes)?;
        Ok(Self {
            pages_per_guest: pages_per_guest as usize,
            pages,
            lz4,
        })
    }
}

/// The recorded size of each content; pages of one content must agree.
fn sizes_by_content(pages: &[u32], sizes: &[u8]) -> Result<Vec<u8>> {
    let highest = pages.iter().copied().max().unwrap_or(0) as usize;
    // Numbers are given out one by one, so there cannot be more of them than pages.
    ensure!(
        highest < pages.len() + FIRST_CONTENT as usize,
        "content number {highest} in {} pages",
        pages.len()
    );
    let mut lz4 = vec![0; highest.max(1) + 1];
    for (&page, &size) in pages
        .iter()
        .zip(sizes)
        .filter(|(page, _)| **page >= FIRST_CONTENT)
    {
        let known = &mut lz4[page as usize];
        if *known != 0 && *known != size {
            bail!("content {page} has two compressed sizes, {known} and {size}");
        }
        *known = size;
    }
    Ok(lz4)
}

fn number(bytes: &[u8]) -> Result<(u32, &[u8])> {
    let (word, rest) = bytes
        .split_first_chunk::<4>()
        .context("it ends within the header")?;
    Ok((u32::from_le_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(guests: u32, pages: u32, ids: &[u32], sizes: &[u8]) -> Vec<u8> {
        let mut bytes = b"LVID".to_vec();
        for word in [guests, pages].iter().chain(ids) {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(sizes);
        bytes
    }

    #[test]
    fn a_small_map_reads_back() {
        let map = IdentityMap::parse(&bytes(2, 2, &[0, 2, 1, 2], &[0, 9, 0, 9])).unwrap();
        assert_eq!((map.guests(), map.pages_per_guest()), (2, 2));
        let contents = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(guest, page)| map.content(guest, page));
        assert_eq!(
            contents,
            [
                Content::Untouched,
                Content::Number(2),
                Content::Zero,
                Content::Number(2)
            ]
        );
        assert_eq!(map.lz4_bytes(2), 144);
    }

    #[test]
    fn copies_share_no_content() {
        let map = IdentityMap::parse(&bytes(1, 3, &[1, 2, 3], &[0, 9, 8]))
            .unwrap()
            .copies(2);
        let contents: Vec<_> = (0..2)
            .flat_map(|guest| (0..3).map(move |page| (guest, page)))
            .collect();
        let contents: Vec<_> = contents
            .iter()
            .map(|(guest, page)| map.content(*guest, *page))
            .collect();
        let number = Content::Number;
        assert_eq!(
            contents,
            [
                Content::Zero,
                number(2),
                number(3),
                Content::Zero,
                number(4),
                number(5)
            ]
        );
        assert_eq!(
            [2, 3, 4, 5].map(|content| map.lz4_bytes(content)),
            [144, 128, 144, 128]
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            vec![],
            b"LVIX\0\0\0\0\0\0\0\0".to_vec(),
            bytes(0, 0, &[], &[]),
            bytes(u32::MAX, u32::MAX, &[], &[]),
            bytes(1, 2, &[0, 0], &[0]),
            bytes(1, 1, &[77], &[1]),
            bytes(1, 2, &[2, 2], &[1, 2]),
        ] {
            assert!(IdentityMap::parse(&bad).is_err(), "{bad:02x?}");
        }
    }
}
