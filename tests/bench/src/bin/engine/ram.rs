//! Guests' memory made from a map, and what an exact oracle says about it.

use std::sync::Arc;

use anyhow::Result;
use ring3::{Memory, PAGE};

use crate::map::{Content, IdentityMap};
use crate::page::{WORDS, synthesise};

/// The memory of all guests of a map.
pub(crate) struct Ram {
    pub(crate) guests: Vec<Arc<Memory>>,
    /// Which pages hold something, guest after guest.
    touched: Vec<Vec<u32>>,
}

/// What merging could free, counted exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Oracle {
    /// Pages that hold something else than zeros.
    pub(crate) nonzero: usize,
    /// Different contents among them.
    pub(crate) contents: usize,
    /// Pages of zeros that occupy memory.
    pub(crate) zero: usize,
    /// Pages that could be freed: all but one of each content, and all zero pages.
    pub(crate) reclaimable: usize,
}

impl Ram {
    /// Builds the memory that `map` describes.
    pub(crate) fn build(map: &IdentityMap) -> Result<Self> {
        let len = map.pages_per_guest() * PAGE;
        let guests = (0..map.guests())
            .map(|_| Ok(Arc::new(Memory::anonymous(len)?)))
            .collect::<Result<Vec<_>>>()?;
        let touched = guests
            .iter()
            .enumerate()
            .map(|(guest, memory)| fill(memory, map, guest))
            .collect();
        Ok(Self { guests, touched })
    }

    /// Bytes of memory, touched or not.
    pub(crate) fn bytes(&self) -> usize {
        self.guests.iter().map(|memory| memory.len()).sum()
    }

    /// The pages of guest `guest` that held something when it was built.
    pub(crate) fn touched(&self, guest: usize) -> &[u32] {
        &self.touched[guest]
    }

    /// Counts what could be freed: hashes every touched page and sorts.
    pub(crate) fn oracle(&self) -> Oracle {
        let mut hashes = Vec::new();
        let mut zero = 0;
        for (memory, touched) in self.guests.iter().zip(&self.touched) {
            for &page in touched {
                let bytes = read(memory, page as usize);
                if bytes.iter().all(|byte| *byte == 0) {
                    zero += 1;
                } else {
                    hashes.push(*blake3::hash(&bytes).as_bytes());
                }
            }
        }
        hashes.sort_unstable();
        let nonzero = hashes.len();
        hashes.dedup();
        let contents = hashes.len();
        Oracle {
            nonzero,
            contents,
            zero,
            reclaimable: nonzero - contents + zero,
        }
    }
}

/// Writes one guest's pages; returns those it touched.
fn fill(memory: &Memory, map: &IdentityMap, guest: usize) -> Vec<u32> {
    let mut touched = Vec::new();
    for page in 0..map.pages_per_guest() {
        let words = match map.content(guest, page) {
            Content::Untouched => continue,
            Content::Zero => [0; WORDS],
            Content::Number(number) => synthesise(number, map.lz4_bytes(number)),
        };
        for (index, word) in words.into_iter().enumerate() {
            memory.write(page * PAGE + index * 8, word);
        }
        touched.push(page as u32);
    }
    touched
}

fn read(memory: &Memory, page: usize) -> [u8; PAGE] {
    let mut bytes = [0; PAGE];
    for (index, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = memory.read(page * PAGE + index * 8).to_ne_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oracle_agrees_with_the_map_of_real_guests() {
        let map = IdentityMap::load(None).unwrap();
        let oracle = Ram::build(&map).unwrap().oracle();
        let want = Oracle {
            nonzero: 227_079,
            contents: 115_580,
            zero: 18_218,
            reclaimable: 111_499 + 18_218,
        };
        assert_eq!(oracle, want);
    }

    #[test]
    fn identical_guests_leave_one() {
        let oracle = Ram::build(&IdentityMap::identical(3, 100)).unwrap().oracle();
        assert_eq!(
            oracle,
            Oracle {
                nonzero: 300,
                contents: 100,
                zero: 0,
                reclaimable: 200
            }
        );
    }
}
