//! Groups: pools of guests that claim memory as one.

use std::fmt;

use crate::{Pages, Shares, Tax};

/// A group's place in the list given to [`Fleet::new`](crate::Fleet::new).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(u32);

impl GroupId {
    /// The group at `place` of the list.
    #[must_use]
    pub const fn new(place: u32) -> Self {
        Self(place)
    }

    /// The place in the list.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {}", self.0)
    }
}

/// A pool of guests and groups. Among its siblings it claims like one guest whose active memory is that of all
/// its members; what it gets, it divides among them by their shares and its own tax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The group it is part of; it must stand earlier in the list. None for the top level.
    pub parent: Option<GroupId>,
    /// Pages its members always get together. At most `max`.
    pub min: Pages,
    /// Pages its members never exceed together.
    pub max: Pages,
    /// Its right to memory relative to its siblings. Not zero.
    pub shares: Shares,
    /// The tax among its members; none for that of the pool it is part of.
    pub tax: Option<Tax>,
}

impl Group {
    /// A top-level group with `shares`, no minimum, no maximum and its parent's tax.
    #[must_use]
    pub fn new(shares: Shares) -> Self {
        Self {
            parent: None,
            min: Pages::ZERO,
            max: Pages::LIMIT,
            shares,
            tax: None,
        }
    }
}

/// Who an error speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A guest.
    Guest(crate::GuestId),
    /// A group.
    Group(GroupId),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest(guest) => guest.fmt(f),
            Self::Group(group) => group.fmt(f),
        }
    }
}
