//! References to slots, counted in one byte each with an overflow table for the few that need more.

use std::collections::HashMap;

use crate::page::Slot;
use crate::sparse::Sparse;

/// In a byte: the real count is in the overflow table.
const OVERFLOWN: u8 = u8::MAX;

/// A reference count for each slot.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    small: Sparse<u8>,
    large: HashMap<u32, u32>,
    total: u64,
}

impl Counts {
    pub(crate) fn new() -> Self {
        Self {
            small: Sparse::new(),
            large: HashMap::new(),
            total: 0,
        }
    }

    /// References to `slot`.
    pub(crate) fn get(&self, slot: Slot) -> u32 {
        match self.small.get(slot.get()) {
            OVERFLOWN => self.large.get(&slot.get()).copied().unwrap_or(0),
            count => u32::from(count),
        }
    }

    /// References to all slots.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Adds one reference to `slot`.
    pub(crate) fn add(&mut self, slot: Slot) {
        self.set(slot, self.get(slot) + 1);
        self.total += 1;
    }

    /// Takes `count` references to `slot` away and returns how many are left, or `None` when there are too few.
    pub(crate) fn take(&mut self, slot: Slot, count: u32) -> Option<u32> {
        let left = self.get(slot).checked_sub(count)?;
        self.set(slot, left);
        self.total -= u64::from(count);
        Some(left)
    }

    /// Every slot with references, and how many.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot, u32)> + '_ {
        let slots = self.small.iter().map(|(number, _)| Slot::new(number));
        slots.map(|slot| (slot, self.get(slot)))
    }

    /// Bytes of memory in use.
    pub(crate) fn bytes(&self) -> usize {
        self.small.bytes() + self.large.capacity() * size_of::<(u32, u32)>()
    }

    fn set(&mut self, slot: Slot, count: u32) {
        let small = u8::try_from(count).unwrap_or(OVERFLOWN);
        let before = self.small.replace(slot.get(), small);
        if small == OVERFLOWN {
            self.large.insert(slot.get(), count);
        } else if before == OVERFLOWN {
            self.large.remove(&slot.get());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_past_a_byte_and_back() {
        let (mut counts, slot) = (Counts::new(), Slot::new(77));
        for expected in 1..=1000 {
            counts.add(slot);
            assert_eq!(counts.get(slot), expected);
        }
        assert_eq!(counts.total(), 1000);
        assert_eq!(counts.take(slot, 1001), None);
        assert_eq!(counts.iter().collect::<Vec<_>>(), [(slot, 1000)]);
        for expected in (0..1000).rev() {
            assert_eq!(counts.take(slot, 1), Some(expected));
            assert_eq!(counts.get(slot), expected);
        }
        assert!(counts.large.is_empty());
        assert_eq!(counts.take(slot, 1), None);
        assert_eq!(counts.total(), 0);
    }
}
