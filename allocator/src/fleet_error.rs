//! What can be wrong with a fleet.

use std::fmt;

use crate::group::{GroupId, Owner};
use crate::{GuestId, Pages};

/// Why no plan can be made: who is at fault, with the values, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FleetError {
    /// A minimum above its maximum.
    MinAboveMax {
        /// Whose limits.
        owner: Owner,
        /// The minimum.
        min: Pages,
        /// The maximum.
        max: Pages,
    },
    /// A guest of no pages.
    ZeroMax {
        /// The guest.
        guest: GuestId,
    },
    /// No shares.
    ZeroShares {
        /// Whose.
        owner: Owner,
    },
    /// Two claims of one guest.
    Twice {
        /// The guest.
        guest: GuestId,
    },
    /// A group that is not in the list, or not before the group that names it.
    UnknownGroup {
        /// Who names it.
        owner: Owner,
        /// The group named.
        group: GroupId,
    },
    /// More guests and groups than a plan can number.
    TooMany {
        /// How many there are.
        count: usize,
    },
    /// Sizes that add up beyond [`Pages::LIMIT`].
    TooLarge {
        /// At whom the sum went over; none for the memory to hand out.
        owner: Option<Owner>,
        /// The size that was too much.
        size: Pages,
        /// The sum before it.
        before: Pages,
    },
    /// A group whose members' minimums exceed its maximum.
    GroupTooSmall {
        /// The group.
        group: GroupId,
        /// What its members' minimums come to.
        minimums: Pages,
        /// Its maximum.
        max: Pages,
    },
    /// More minimums than memory.
    MinimumsExceedMemory {
        /// At whom the sum went over.
        owner: Owner,
        /// The minimum that was too much.
        min: Pages,
        /// All minimums together.
        minimums: Pages,
        /// The memory to hand out.
        memory: Pages,
    },
}

impl fmt::Display for FleetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MinAboveMax { owner, min, max } => {
                write!(
                    f,
                    "{owner}: min of {min} is above max of {max}; lower min or raise max"
                )
            }
            Self::ZeroMax { guest } => write!(f, "{guest}: max is 0 pages; a guest has at least one"),
            Self::ZeroShares { owner } => write!(f, "{owner}: 0 shares; give it at least 1"),
            Self::Twice { guest } => write!(f, "{guest}: claims twice; give every guest its own number"),
            Self::UnknownGroup { owner, group } => write!(
                f,
                "{owner}: {group} does not exist or does not stand before it in the list of groups"
            ),
            Self::TooMany { count } => {
                write!(
                    f,
                    "{count} guests and groups; a plan numbers at most {}",
                    u32::MAX
                )
            }
            Self::TooLarge { owner, size, before } => {
                match owner {
                    Some(owner) => write!(f, "{owner}: ")?,
                    None => write!(f, "memory to hand out: ")?,
                }
                write!(f, "{size} on top of {before} is beyond {}", Pages::LIMIT)
            }
            Self::GroupTooSmall { group, minimums, max } => write!(
                f,
                "{group}: its members' minimums are {minimums}, its max is {max}; raise its max or lower their minimums"
            ),
            Self::MinimumsExceedMemory {
                owner,
                min,
                minimums,
                memory,
            } => write!(
                f,
                "{owner}: min of {min} does not fit: all minimums are {minimums}, the memory to hand out is \
                 {memory}; lower minimums or stop a guest"
            ),
        }
    }
}

impl std::error::Error for FleetError {}
