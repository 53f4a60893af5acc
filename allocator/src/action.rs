//! What the host can do to a guest's memory.

use crate::{GuestId, Pages};

/// A way to move a guest towards its target. The first five are the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Raise the balloon's target.
    Balloon,
    /// Replace zero pages and pages equal to others by common copies. Always tried on a page before it is compressed
    /// or swapped.
    Share,
    /// Compress the coldest pages on which sharing found nothing.
    Compress,
    /// Write the coldest pages on which sharing found nothing to swap.
    Swap,
    /// Let the guest hold no more than it does until it is at its target.
    Block,
    /// Lower the balloon's target.
    Release,
}

impl Action {
    /// All actions.
    pub const ALL: [Self; 6] = [
        Self::Balloon,
        Self::Share,
        Self::Compress,
        Self::Swap,
        Self::Block,
        Self::Release,
    ];

    /// The name as users write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Balloon => "balloon",
            Self::Share => "share",
            Self::Compress => "compress",
            Self::Swap => "swap",
            Self::Block => "block",
            Self::Release => "release",
        }
    }
}

/// One thing to do to one guest now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// To whom.
    pub guest: GuestId,
    /// What.
    pub action: Action,
    /// To how many pages; for [`Action::Block`] by how many it is above its target.
    pub pages: Pages,
}
