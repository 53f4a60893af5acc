//! What one guest asks for and what it holds.

use std::fmt;

use crate::group::GroupId;
use crate::{Pages, Shares};

/// The caller's number for a guest. It orders ties and names the guest in errors, nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestId(u64);

impl GuestId {
    /// The guest the caller calls `number`.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The caller's number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for GuestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest {}", self.0)
    }
}

/// One guest's claim on memory: its limits, and what was measured of it.
///
/// Made with [`Claim::new`] and struct update; [`Fleet::new`](crate::Fleet::new) checks it.
///
/// All sizes but `shared` are of **private** pages. Shared and zero-filled pages are neither sampled nor taxed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Who claims.
    pub guest: GuestId,
    /// The group it belongs to; none for the top level.
    pub group: Option<GroupId>,
    /// Pages it always gets (its reservation). At most `max`.
    pub min: Pages,
    /// Its configured size. At least one page.
    pub max: Pages,
    /// Its right to memory relative to its siblings. Not zero.
    pub shares: Shares,
    /// Private pages it actively uses, by estimate. Above `max` counts as `max`.
    pub active: Pages,
    /// Its pages backed by common copies or the zero page: they need no private page now, so that much less of `max`
    /// and of `min` is handed out, down to none. Above `max` counts as `max`.
    pub shared: Pages,
    /// What it holds now and how that can be taken from it.
    pub holding: Holding,
}

impl Claim {
    /// The claim of a guest of which nothing was measured yet: wholly active (so untaxed), sharing nothing,
    /// holding nothing.
    #[must_use]
    pub fn new(guest: GuestId, min: Pages, max: Pages, shares: Shares) -> Self {
        Self {
            guest,
            group: None,
            min,
            max,
            shares,
            active: max,
            shared: Pages::ZERO,
            holding: Holding::default(),
        }
    }
}

/// What a guest holds and what each way of taking it could yield. Limits, not promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Private pages it holds now, and the memory that its compressed pages occupy: who is compressed pays for it.
    pub held: Pages,
    /// What its balloon can do.
    pub balloon: Balloon,
    /// Private pages that may turn out equal to others or to zero: not scanned, or changed since.
    pub shareable: Pages,
    /// Private pages that may be compressed.
    pub compressible: Pages,
    /// Private pages that may be written to swap.
    pub swappable: Pages,
}

/// What a guest's balloon can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balloon {
    /// No driver, or one that does not do what it is asked: reclaim goes by the other ways.
    #[default]
    Silent,
    /// The driver follows its target.
    Answers {
        /// Pages it can still take.
        room: Pages,
        /// Pages it holds and can give back to the guest.
        size: Pages,
    },
}
