//! Where in a pool new pages go: consecutive pages of one publisher into consecutive slots.
//!
//! Run length is what keeps the number of VMAs small, so every publisher fills a window of 512 slots of its own and
//! takes the next one when that is full. Windows come from wholly free stretches first, then from growing the pool,
//! and only at the pool's limit from smaller gaps. Holes in the memfd cost no memory, so loose packing is free.

use std::collections::HashMap;
use std::ops::Range;

use crate::page::{GuestId, Slot};

/// Slots in one bitmap word.
const WORD: u32 = u64::BITS;

/// Sizes of free stretches to look for, in words, best first; a single free slot is the last resort.
const WINDOWS: [u32; 3] = [8, 1, 0];

/// Which slots are in use, and where each publisher goes on.
#[derive(Debug, Default)]
pub(crate) struct Placement {
    used: Vec<u64>,
    used_slots: u32,
    windows: HashMap<GuestId, Range<u32>>,
    /// Word to look at first for the next window.
    next: u32,
}

impl Placement {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Slots that exist, used or not.
    pub(crate) fn slots(&self) -> u32 {
        self.used.len() as u32 * WORD
    }

    /// Slots in use.
    pub(crate) fn used(&self) -> u32 {
        self.used_slots
    }

    /// Whether `slot` is in use.
    pub(crate) fn is_used(&self, slot: Slot) -> bool {
        let word = self.used.get((slot.get() / WORD) as usize);
        word.is_some_and(|word| word >> (slot.get() % WORD) & 1 == 1)
    }

    /// Adds `slots` free slots at the end; a multiple of 512.
    pub(crate) fn grow(&mut self, slots: u32) {
        self.next = self.used.len() as u32;
        self.used.resize(self.used.len() + (slots / WORD) as usize, 0);
    }

    /// The next slot for a page of `guest`, now in use; `None` when the guest needs a new window and no free stretch
    /// is left: grow, or call [`place_in_gap`](Self::place_in_gap).
    pub(crate) fn place(&mut self, guest: GuestId) -> Option<Slot> {
        if let Some(slot) = self.continue_window(guest) {
            return Some(slot);
        }
        self.open_window(guest, WINDOWS[0])?;
        self.continue_window(guest)
    }

    /// Like [`place`](Self::place), in whatever stretch is free; `None` when every slot is in use.
    pub(crate) fn place_in_gap(&mut self, guest: GuestId) -> Option<Slot> {
        for words in WINDOWS {
            if self.open_window(guest, words).is_some() {
                return self.continue_window(guest);
            }
        }
        // What is left is other publishers' windows: those may be plundered.
        self.windows.clear();
        self.open_window(guest, 0)?;
        self.continue_window(guest)
    }

    /// Makes `slot` itself used; `false` when it is already or does not exist.
    pub(crate) fn place_at(&mut self, slot: Slot) -> bool {
        let bit = 1 << (slot.get() % WORD);
        match self.used.get_mut((slot.get() / WORD) as usize) {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                self.used_slots += 1;
                true
            }
            _ => false,
        }
    }

    /// The first slot of a word that is wholly free and in no guest's window, looked for from the end.
    pub(crate) fn free_word(&self) -> Option<u32> {
        let in_window = |slot: u32| self.windows.values().any(|window| window.contains(&slot));
        let words = (0..self.used.len() as u32).rev();
        let mut free = words
            .filter(|&word| self.used[word as usize] == 0)
            .map(|word| word * WORD);
        free.find(|&slot| !in_window(slot))
    }

    /// Makes `slot` free again.
    pub(crate) fn free(&mut self, slot: Slot) {
        let bit = 1 << (slot.get() % WORD);
        let word = &mut self.used[(slot.get() / WORD) as usize];
        debug_assert!(*word & bit != 0, "{slot:?} freed twice");
        *word &= !bit;
        self.used_slots -= 1;
    }

    /// Forgets where `guest` would go on.
    pub(crate) fn close_window(&mut self, guest: GuestId) {
        self.windows.remove(&guest);
    }

    /// Bytes of memory in use.
    pub(crate) fn bytes(&self) -> usize {
        self.used.capacity() * size_of::<u64>() + self.windows.capacity() * size_of::<(GuestId, Range<u32>)>()
    }

    fn continue_window(&mut self, guest: GuestId) -> Option<Slot> {
        let window = self.windows.get_mut(&guest)?;
        for number in window.by_ref() {
            let bit = 1 << (number % WORD);
            let word = &mut self.used[(number / WORD) as usize];
            if *word & bit == 0 {
                *word |= bit;
                self.used_slots += 1;
                return Some(Slot::new(number));
            }
        }
        self.windows.remove(&guest);
        None
    }

    /// Finds `words` free words in a row (aligned to `words`), or one free slot for zero, and makes them the guest's.
    fn open_window(&mut self, guest: GuestId, words: u32) -> Option<()> {
        let step = words.max(1);
        let groups = self.used.len() as u32 / step;
        let first = self.next / step;
        let start = (0..groups)
            .map(|group| (first + group) % groups * step)
            .find(|&start| self.is_free(guest, start, words))?;
        self.next = start + step;
        self.windows.insert(guest, start * WORD..(start + step) * WORD);
        Some(())
    }

    /// Whether a window may begin at word `start`.
    fn is_free(&self, guest: GuestId, start: u32, words: u32) -> bool {
        let stretch = start..start + words.max(1);
        let slots = stretch.start * WORD..stretch.end * WORD;
        let all = &self.used[stretch.start as usize..stretch.end as usize];
        let enough = if words == 0 {
            all[0] != u64::MAX
        } else {
            all.iter().all(|&word| word == 0)
        };
        let overlaps = |window: &Range<u32>| window.start < slots.end && slots.start < window.end;
        let mut others = self.windows.iter().filter(|&(&other, _)| other != guest);
        enough && !others.any(|(_, window)| overlaps(window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const A: GuestId = GuestId::new(0);
    const B: GuestId = GuestId::new(1);

    fn grown(slots: u32) -> Placement {
        let mut placement = Placement::new();
        placement.grow(slots);
        placement
    }

    #[test]
    fn one_publisher_gets_consecutive_slots_across_windows() {
        let mut placement = grown(2048);
        for number in 0..2048 {
            assert_eq!(placement.place(A), Some(Slot::new(number)));
        }
        assert_eq!(placement.place(A), None);
        assert_eq!(placement.place_in_gap(A), None);
    }

    #[test]
    fn two_publishers_do_not_interleave() {
        let mut placement = grown(2048);
        let slots = |placement: &mut Placement, guest| placement.place(guest).unwrap().get();
        let pairs: Vec<_> = (0..512)
            .map(|_| (slots(&mut placement, A), slots(&mut placement, B)))
            .collect();
        for pair in pairs.windows(2) {
            assert_eq!(pair[1], (pair[0].0 + 1, pair[0].1 + 1));
        }
    }

    #[test]
    fn at_the_limit_every_last_slot_is_found() {
        let mut placement = grown(1024);
        let mut seen = HashSet::new();
        assert!(seen.insert(placement.place(A).unwrap()));
        assert!(seen.insert(placement.place(B).unwrap()));
        while let Some(slot) = placement.place(A).or_else(|| placement.place_in_gap(A)) {
            assert!(seen.insert(slot), "{slot:?} was given twice");
        }
        assert_eq!((seen.len(), placement.used()), (1024, 1024));
        placement.free(Slot::new(700));
        assert_eq!(placement.place(B), None);
        assert_eq!(placement.place_in_gap(B), Some(Slot::new(700)));
        assert!(placement.is_used(Slot::new(700)) && !placement.is_used(Slot::new(1024)));
    }
}
