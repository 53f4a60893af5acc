//! What a page is not to be used for, and who knows of it.

use std::ops::BitOr;

/// A set of marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marks(u8);

impl Marks {
    /// The caller said never to touch it.
    pub(crate) const EXCLUDED: Self = Self(1);
    /// The kernel refused to move it: pinned, or shared with a forked child. Cleared when it is written.
    pub(crate) const STUCK: Self = Self(2);
    /// The manager knows it as a hint.
    pub(crate) const REPORTED: Self = Self(4);
    /// Its content cannot be shared: another content has the same sketch.
    pub(crate) const UNSHARABLE: Self = Self(8);
    /// It could have been merged, but there was no mapping left for it, or no room in the pool.
    pub(crate) const LEFT_OUT: Self = Self(16);
    /// It differed from the pool page that it was thought to equal: no speculation about it before it has been merged.
    pub(crate) const DIFFERED: Self = Self(32);
    /// The swap thread has it, or a thread that peeks at it, for as long as its disk takes. Neither empty before nor in
    /// a pool; private afterwards, or where it was, or lost.
    pub(crate) const READING: Self = Self(64);

    /// One bit for each mark.
    pub(super) const fn bits(self) -> u8 {
        self.0
    }
}

impl BitOr for Marks {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
