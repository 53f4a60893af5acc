//! Shares: the relative right to memory.

use std::fmt;

/// How much a guest or group counts relative to its siblings. Only ratios matter.
///
/// Zero shares can be written down but not used: [`Fleet::new`](crate::Fleet::new) refuses them and names the
/// guest, which this type could not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shares(u32);

impl Shares {
    /// The low level: 500.
    pub const LOW: Self = Self(500);
    /// The normal level: 1000.
    pub const NORMAL: Self = Self(1000);
    /// The high level: 2000.
    pub const HIGH: Self = Self(2000);

    /// `count` shares.
    #[must_use]
    pub const fn new(count: u32) -> Self {
        Self(count)
    }

    /// How many shares.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Default for Shares {
    fn default() -> Self {
        Self::NORMAL
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} shares", self.0)
    }
}
