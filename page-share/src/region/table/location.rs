//! Where a page's content is when its state alone does not say it.

use crate::region::table::State;

/// One kind of place for a page's content: 32 bits that the table keeps for the page.
///
/// A page has room for one location, whose kind its state names.
pub(crate) trait Location: Copy {
    /// Whether pages in `state` have a location of this kind.
    fn belongs_to(state: State) -> bool;

    /// The location whose [`bits`](Self::bits) were kept.
    fn from_bits(bits: u32) -> Self;

    /// The location as a number.
    fn bits(self) -> u32;
}
