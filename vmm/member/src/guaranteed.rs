//! What was promised to a guest, and what of that may be taken for a moment.

use page_share::Region;

const PAGE: u64 = 4096;

/// A guest at its minimum gives up this part of it for other pages of its own, as a divisor.
const EXCHANGED: u64 = 64;

/// But no more than this many bytes.
const MOST_EXCHANGED: u64 = 1 << 20;

/// What was promised to a guest and what it has, bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guaranteed {
    minimum: u64,
    /// Its own pages, compressed ones by what they occupy, common copies and zero pages.
    has: u64,
}

impl Guaranteed {
    /// Of the guest whose memory is `region`, in a process that holds `held` bytes.
    pub(super) fn of(region: &Region, held: u64, minimum: u64) -> Self {
        let stats = region.stats();
        let own = stats.private + stats.broken + stats.huge + stats.sampled + stats.in_transit;
        Self {
            minimum,
            // What of a huge block is there is not known, but the process as a whole holds no more than it holds.
            has: (own * PAGE + stats.store_bytes).min(held) + (stats.shared + stats.zero) * PAGE,
        }
    }

    /// What it lacks.
    pub(super) fn short(self) -> u64 {
        self.minimum.saturating_sub(self.has)
    }

    /// What may be taken. At its minimum a guest goes on by exchanging pages, so a little of it can be away.
    pub(super) fn spare(self) -> u64 {
        let exchanged = (self.minimum / EXCHANGED).min(MOST_EXCHANGED);
        self.has.saturating_sub(self.minimum - exchanged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn nothing_is_to_spare_below_the_minimum_and_little_of_it_is_exchanged() {
        let of = |has| Guaranteed {
            minimum: 64 * MIB,
            has: has * MIB,
        };
        assert_eq!((of(40).spare(), of(40).short()), (0, 24 * MIB));
        assert_eq!((of(64).spare(), of(64).short()), (MIB, 0));
        assert_eq!((of(80).spare(), of(80).short()), (17 * MIB, 0));
        let nothing = Guaranteed { minimum: 0, has: MIB };
        assert_eq!((nothing.spare(), nothing.short()), (MIB, 0));
    }
}
