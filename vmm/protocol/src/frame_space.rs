//! Which guest frame numbers a guest of a given size has: manager and machine must agree.

/// Bytes in a guest page frame.
pub const PAGE_SIZE: u64 = 4096;

/// First address above low RAM; the hole for registers follows.
pub const LOW_RAM_END: u64 = 0xC000_0000;
/// First address of high RAM.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// The ranges of RAM that a guest of `bytes` has, as (guest-physical start, length in bytes).
pub fn ram_ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(LOW_RAM_END);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((HIGH_RAM_START, bytes - low));
    }
    ranges
}

/// The guest frame numbers that a guest has: those from 0 up to its last page of RAM, the hole for registers among them.
///
/// A guest of up to 3 GiB has as many frame numbers as pages of RAM, a larger one has 1 GiB of frame numbers more. Where
/// page numbers are checked or tables are indexed by them, this is the bound, and never the number of pages of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameSpace(u32);

impl FrameSpace {
    /// Bytes of RAM that the largest guest has: its frame numbers, the hole's among them, just fit 32 bits.
    pub const MOST_RAM: u64 = u32::MAX as u64 * PAGE_SIZE - (HIGH_RAM_START - LOW_RAM_END);

    /// That of a guest with `bytes` of RAM; a part of a page at the end counts as one. `None` where frame numbers of 32
    /// bits do not suffice, which is above [`MOST_RAM`](Self::MOST_RAM).
    pub fn of_ram(bytes: u64) -> Option<Self> {
        let (start, len) = ram_ranges(bytes).pop()?;
        let end = start.checked_add(len)?;
        u32::try_from(end.div_ceil(PAGE_SIZE)).ok().map(Self)
    }

    /// One more than the highest frame number.
    pub const fn frames(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_beyond_the_hole_continues_above_4_gib() {
        assert_eq!(ram_ranges(512 << 20), [(0, 512 << 20)]);
        assert_eq!(ram_ranges(LOW_RAM_END), [(0, LOW_RAM_END)]);
        assert_eq!(
            ram_ranges(5 << 30),
            [(0, LOW_RAM_END), (HIGH_RAM_START, (5 << 30) - LOW_RAM_END)]
        );
    }

    #[test]
    fn frame_numbers_go_on_above_the_hole() {
        const GIB: u64 = 1 << 30;
        let frames = |bytes| FrameSpace::of_ram(bytes).map(FrameSpace::frames);
        assert_eq!(frames(513 << 20), Some(513 * 256));
        assert_eq!(frames(3 * GIB), Some(3 << 18));
        assert_eq!(frames(3 * GIB + (1 << 20)), Some((4 << 18) + 256));
        assert_eq!(frames(3 * GIB + 1), Some((4 << 18) + 1));
        assert_eq!(frames(16 * GIB), Some(17 << 18));
        // The last page that fits, and the first that does not.
        let most = FrameSpace::MOST_RAM;
        assert_eq!(frames(most), Some(u32::MAX));
        assert_eq!(frames(most + 1), None);
        assert_eq!(frames(u64::MAX), None);
    }
}
