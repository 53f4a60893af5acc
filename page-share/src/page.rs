//! The nouns of a page: where it is in a guest, where its common copy is in a pool, and its bytes.

use std::fmt;

/// Bytes in a page, the unit of everything here.
pub const PAGE_SIZE: usize = 4096;

/// Binary logarithm of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// The bytes of one page, always a private copy: memory that a guest can write is never seen through this type.
pub type Page = [u8; PAGE_SIZE];

/// A guest page number: the guest-physical address divided by [`PAGE_SIZE`].
///
/// 32 bits, so guest-physical addresses up to 16 TiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gfn(u32);

impl Gfn {
    /// The page with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The page that follows, or `None` after the last possible one.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }

    /// The page before, or `None` before the first one.
    pub(crate) fn previous(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }

    /// The page `pages` further on, or the last possible one.
    pub(crate) const fn plus(self, pages: u32) -> Self {
        Self(self.0.saturating_add(pages))
    }

    /// Pages from `earlier` to this one.
    pub(crate) const fn since(self, earlier: Self) -> u32 {
        self.0 - earlier.0
    }
}

impl fmt::Debug for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gfn({:#x})", self.0)
    }
}

/// The number of a page in a pool: its byte offset in the memfd divided by [`PAGE_SIZE`].
///
/// Means nothing without the [`PoolGeneration`] that granted it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u32);

impl Slot {
    /// The slot with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Bytes from the start of the pool's memfd.
    pub fn offset(self) -> u64 {
        u64::from(self.0) << PAGE_SHIFT
    }

    /// The slot that follows, or `None` after the last possible one.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({:#x})", self.0)
    }
}

/// A guest as its sharing domain numbers it. The number may go to another guest later; the [`Epoch`] tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestId(u16);

impl GuestId {
    /// The guest with this number.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// When a connection was given the right to speak for a guest. Never used again, in no domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Which incarnation of a domain's pool a slot belongs to: random, so that a restarted manager's differs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PoolGeneration(u64);

impl PoolGeneration {
    /// The generation with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for PoolGeneration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolGeneration({:#018x})", self.0)
    }
}
