//! What is guaranteed to a guest, and what of that may be taken for a moment.

use page_share::Stats;

use super::PAGE;

/// A guest at its minimum gives up this part of it for other pages of its own, as a divisor.
const EXCHANGED: u64 = 64;

/// But no more than this many bytes.
const MOST_EXCHANGED: u64 = 1 << 20;

/// A guest's pages, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct GuestPages {
    /// Its own pages, compressed ones by what they occupy.
    pub(super) own: u64,
    /// Common copies and zero pages.
    pub(super) common: u64,
    /// What the guest could take at all.
    pub(super) growable: u64,
}

impl GuestPages {
    /// Of the region with these `stats`.
    pub(crate) fn of(stats: &Stats) -> Self {
        let own = stats.private + stats.broken + stats.huge + stats.sampled + stats.in_transit;
        let common = stats.shared + stats.zero;
        // What of a huge block is there is not known.
        let growable = common + stats.empty + stats.ballooned + stats.compressed + stats.swapped + stats.huge;
        Self {
            own: own * PAGE + stats.store_bytes,
            common: common * PAGE,
            growable: growable * PAGE,
        }
    }
}

/// What is guaranteed to a guest and what it has, bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guaranteed {
    minimum: u64,
    has: u64,
}

impl Guaranteed {
    /// Of the guest that has `pages`, in a process that holds `held` bytes.
    pub(super) fn of(pages: GuestPages, held: u64, minimum: u64) -> Self {
        Self {
            minimum,
            // What of a huge block is there is not known, but the process as a whole holds no more than it holds.
            has: pages.own.min(held) + pages.common,
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
        let of = |has: u64, minimum: u64| {
            let pages = GuestPages {
                own: u64::MAX,
                common: MIB,
                growable: 0,
            };
            let guaranteed = Guaranteed::of(pages, (has - 1) * MIB, minimum * MIB);
            (guaranteed.spare(), guaranteed.short())
        };
        assert_eq!(of(40, 64), (0, 24 * MIB));
        assert_eq!(of(64, 64), (MIB, 0));
        assert_eq!(of(80, 64), (17 * MIB, 0));
        assert_eq!(of(1, 0), (MIB, 0));
    }
}
