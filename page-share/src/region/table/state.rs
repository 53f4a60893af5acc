//! Where a page's content can be, and which steps lead from one state to another.

/// Where a page's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// No memory of this guest: a hole between two ranges.
    Hole,
    /// Nowhere: reads zero when touched.
    Empty,
    /// In guest memory, in a page of its own.
    Private,
    /// In guest memory, the kernel's shared zero page, or private if it was written since the last look.
    Zero,
    /// In the hands of one thread, which settles it and wakes the waiters.
    InTransit,
    /// In the sampling area; the first touch brings it back and is counted.
    Sampled,
    /// A copy-on-write mapping of a pool page.
    Shared,
    /// As shared, but the kernel has made a private copy at the guest's write.
    Broken,
    /// In the compressed store.
    Compressed,
    /// In the swap file.
    Swapped,
    /// Given up by the guest through its balloon. Reads zero when touched.
    Ballooned,
    /// Lost by a failing swap file: every access fails like one to broken memory.
    Lost,
    /// Inside a block left to the kernel as a huge page; not watched.
    Huge,
}

/// Number of states.
pub(crate) const STATES: usize = 13;

impl State {
    const ALL: [Self; STATES] = [
        Self::Hole,
        Self::Empty,
        Self::Private,
        Self::Zero,
        Self::InTransit,
        Self::Sampled,
        Self::Shared,
        Self::Broken,
        Self::Compressed,
        Self::Swapped,
        Self::Ballooned,
        Self::Lost,
        Self::Huge,
    ];

    pub(super) fn from_byte(byte: u8) -> Self {
        Self::ALL[usize::from(byte)]
    }

    /// Whether a claimed page may settle as `to` after having been `self`. What it was is always allowed.
    pub(crate) fn may_become(self, to: Self) -> bool {
        use State::{
            Ballooned, Broken, Compressed, Empty, Hole, Huge, InTransit, Lost, Private, Sampled, Shared,
            Swapped, Zero,
        };
        self == to
            || match (self, to) {
                (Hole, _) | (_, Hole | InTransit) | (InTransit, _) => false,
                // The guest may give up anything, and anything unmanaged can become managed and back.
                (_, Empty | Ballooned) => true,
                (Empty | Ballooned, Private | Zero) | (Huge, Private) => true,
                (Private | Zero, Sampled | Compressed | Swapped) => true,
                (Private | Zero, Shared | Zero | Private | Huge) => true,
                (Sampled | Compressed | Swapped | Shared | Broken, Private | Zero) => true,
                (Swapped | Compressed, Lost) | (Compressed, Swapped) => true,
                (Shared, Broken) => true,
                _ => false,
            }
    }

    /// Whether the page is in a mapping of a pool.
    pub(crate) fn is_pool(self) -> bool {
        matches!(self, Self::Shared | Self::Broken)
    }

    /// Whether the page's content is compressed or swapped.
    pub(crate) fn is_stored(self) -> bool {
        matches!(self, Self::Compressed | Self::Swapped)
    }

    /// Whether the page's content is in guest memory and shared with no other guest.
    pub(crate) fn is_private(self) -> bool {
        matches!(self, Self::Private | Self::Zero)
    }
}
