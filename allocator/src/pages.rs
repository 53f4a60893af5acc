//! Counts of 4 KiB machine pages.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub, SubAssign};

/// A number of 4 KiB pages: never bytes, never an address.
///
/// Addition saturates at `u64::MAX`; every sum the planner relies on is checked against [`Pages::LIMIT`] when
/// the [`Fleet`](crate::Fleet) is made, so saturation is never part of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pages(u64);

impl Pages {
    /// No page.
    pub const ZERO: Self = Self(0);
    /// The most pages a fleet may add up to: 2^40, which is 4 PiB.
    pub const LIMIT: Self = Self(1 << 40);

    /// `count` pages.
    #[must_use]
    pub const fn new(count: u64) -> Self {
        Self(count)
    }

    /// The pages of `mib` MiB, 256 each.
    #[must_use]
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib.saturating_mul(256))
    }

    /// How many pages.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The size in MiB, for people.
    #[must_use]
    pub fn mib(self) -> f64 {
        self.0 as f64 / 256.0
    }

    /// `self - other`, or zero where `other` is larger.
    #[must_use]
    pub const fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `part` of these pages, rounded to the nearest; a `part` that is not a number, or negative, gives none.
    #[must_use]
    pub fn part(self, part: f64) -> Self {
        Self((self.0 as f64 * part).round() as u64)
    }

    /// These pages as a part of `whole`; 0 where `whole` is empty.
    #[must_use]
    pub fn of(self, whole: Self) -> f64 {
        if whole.0 == 0 {
            return 0.0;
        }
        self.0 as f64 / whole.0 as f64
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages ({:.1} MiB)", self.0, self.mib())
    }
}

impl Add for Pages {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Pages {
    type Output = Self;
    /// Saturates at zero, as [`Pages::less`].
    fn sub(self, other: Self) -> Self {
        self.less(other)
    }
}

impl AddAssign for Pages {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Pages {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Sum for Pages {
    fn sum<I: Iterator<Item = Self>>(pages: I) -> Self {
        pages.fold(Self::ZERO, Add::add)
    }
}
