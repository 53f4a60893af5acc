//! Which slots of a swap file hold what, and which of its extents have space on the disk.

use std::num::NonZeroU64;
use std::ops::Range;

use crate::page::{PAGE_SHIFT, PAGE_SIZE};

/// Pages by which the file grows and shrinks: 1 MiB. A disk that is almost full is used but for less than this.
pub(super) const EXTENT: u32 = (1 << 20) / PAGE_SIZE as u32;

/// Most extents whose space goes back at once: 16 MiB. File systems take as long for one extent as for several.
const LEAVING: usize = 16;

/// A page's checksum: its sketch, with one bit given up so that a free slot costs no more than a used one.
pub(super) type Sum = NonZeroU64;

/// A page's place in a swap file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SwapSlot(u32);

impl SwapSlot {
    /// The slot whose number was kept. A wrong one is found out when it is used.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The slot as a number.
    pub const fn bits(self) -> u32 {
        self.0
    }

    pub(super) fn offset(self) -> u64 {
        u64::from(self.0) << PAGE_SHIFT
    }

    /// The slot `count` further on.
    pub(super) fn after(self, count: u32) -> Self {
        Self(self.0 + count)
    }
}

/// What is behind the slots of an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExtentState {
    /// Space on the disk: a page can be written there.
    Disk,
    /// The space is being given back.
    Leaving,
    /// Nothing.
    Hole,
}

#[derive(Debug, Clone, Copy)]
struct Extent {
    used: u32,
    backing: ExtentState,
}

/// All slots of a file.
#[derive(Debug)]
pub(super) struct Slots {
    /// The checksum of each slot's page; `None` where it is free.
    sums: Vec<Option<Sum>>,
    extents: Vec<Extent>,
    used: u32,
    /// Slots with space on the disk.
    backed: u32,
    /// Extents with space on the disk and no page.
    vacant: u32,
    limit: u32,
    /// Slot to look at first.
    next: u32,
}

impl Slots {
    /// No slots yet, and never more than `limit`.
    pub(super) fn new(limit: u32) -> Self {
        Self {
            sums: Vec::new(),
            extents: Vec::new(),
            used: 0,
            backed: 0,
            vacant: 0,
            limit,
            next: 0,
        }
    }

    pub(super) fn used(&self) -> u32 {
        self.used
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// Slots with space on the disk.
    pub(super) fn backed(&self) -> u32 {
        self.backed
    }

    /// Bytes of memory in use.
    pub(super) fn bytes(&self) -> usize {
        self.sums.capacity() * size_of::<Option<Sum>>() + self.extents.capacity() * size_of::<Extent>()
    }

    /// The checksum of the page in `slot`, if there is one.
    pub(super) fn sum(&self, slot: SwapSlot) -> Option<Sum> {
        self.sums.get(slot.0 as usize).copied().flatten()
    }

    /// Slots without a page that have space on the disk.
    pub(super) fn free(&self) -> u32 {
        self.backed - self.used
    }

    /// The extent that should get space next: a hole, or one more at the end. `None` at the limit.
    pub(super) fn extent_to_back(&self) -> Option<u32> {
        let hole = |extent: &Extent| extent.backing == ExtentState::Hole;
        let number = self.extents.iter().position(hole).unwrap_or(self.extents.len()) as u32;
        (u64::from(number) * u64::from(EXTENT) < u64::from(self.limit)).then_some(number)
    }

    /// The slots of an extent.
    pub(super) fn slots_of(&self, extent: u32) -> Range<u32> {
        let start = extent * EXTENT;
        start..start + EXTENT.min(self.limit - start)
    }

    /// An extent has space on the disk now.
    pub(super) fn back(&mut self, extent: u32) {
        let slots = self.slots_of(extent);
        let backed = Extent {
            used: 0,
            backing: ExtentState::Disk,
        };
        match self.extents.get_mut(extent as usize) {
            Some(known) => *known = backed,
            None => {
                self.extents.push(backed);
                self.sums.resize(slots.end as usize, None);
            }
        }
        self.backed += slots.len() as u32;
        self.vacant += 1;
    }

    /// Appends `count` of the free slots to `slots`, in file order from where the last search ended. They stay free until
    /// they are filled.
    pub(super) fn choose(&mut self, count: usize, slots: &mut Vec<SwapSlot>) {
        let total = self.sums.len() as u32;
        let start = slots.len();
        let order = [self.next..total, 0..self.next];
        let pieces = order.into_iter().flat_map(extents_of).filter(|piece| {
            let extent = self.extents[(piece.start / EXTENT) as usize];
            extent.backing == ExtentState::Disk && extent.used < EXTENT
        });
        let free = pieces
            .flatten()
            .filter(|&number| self.sums[number as usize].is_none());
        slots.extend(free.take(count).map(SwapSlot));
        debug_assert_eq!(slots.len() - start, count, "{self:?}");
        self.next = slots.last().map_or(0, |slot| (slot.0 + 1) % total.max(1));
    }

    /// A free slot has a page with checksum `sum` now.
    pub(super) fn fill(&mut self, slot: SwapSlot, sum: Sum) {
        let extent = &mut self.extents[(slot.0 / EXTENT) as usize];
        debug_assert_eq!(extent.backing, ExtentState::Disk);
        self.vacant -= u32::from(extent.used == 0);
        extent.used += 1;
        self.used += 1;
        self.sums[slot.0 as usize] = Some(sum);
    }

    /// Forgets the page in `slot`; whether there was one.
    pub(super) fn empty(&mut self, slot: SwapSlot) -> bool {
        let sum = self.sums.get_mut(slot.0 as usize);
        if sum.and_then(Option::take).is_none() {
            return false;
        }
        let extent = &mut self.extents[(slot.0 / EXTENT) as usize];
        extent.used -= 1;
        self.vacant += u32::from(extent.used == 0);
        self.used -= 1;
        true
    }

    /// Extents in a row whose space can go back: they have no page, and none is the one that the next page goes to.
    /// Nothing is put there from now on.
    pub(super) fn leave(&mut self) -> Option<Range<u32>> {
        if self.vacant == 0 {
            return None;
        }
        let filling = (self.used > 0).then_some((self.next / EXTENT) as usize);
        let extents = &self.extents;
        let vacant = |number: &usize| {
            let extent = extents[*number];
            extent.backing == ExtentState::Disk && extent.used == 0 && filling != Some(*number)
        };
        let first = (0..extents.len()).find(vacant)?;
        let count = (first..extents.len()).take_while(vacant).take(LEAVING).count();
        let leaving = first as u32..(first + count) as u32;
        for number in leaving.clone() {
            self.extents[number as usize].backing = ExtentState::Leaving;
            self.vacant -= 1;
            self.backed -= self.slots_of(number).len() as u32;
        }
        Some(leaving)
    }

    /// What became of extents that were leaving: gone, or still there.
    pub(super) fn left(&mut self, extents: Range<u32>, gone: bool) {
        for extent in extents {
            match gone {
                true => self.extents[extent as usize].backing = ExtentState::Hole,
                false => self.back(extent),
            }
        }
    }
}

/// The pieces of `slots` that are in one extent each.
fn extents_of(slots: Range<u32>) -> impl Iterator<Item = Range<u32>> {
    let (start, end) = (slots.start, slots.end);
    let first = start / EXTENT;
    (first..end.div_ceil(EXTENT).max(first))
        .map(move |extent| start.max(extent * EXTENT)..end.min((extent + 1) * EXTENT))
}
