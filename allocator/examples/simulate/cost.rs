//! What moving a page costs, in microseconds of the guest's time.

/// Simple, and the same for all policies compared. Orders of magnitude of one machine with an SSD.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Costs {
    /// The guest's driver allocates a page and reports it.
    pub(crate) balloon: f64,
    /// A compressed page is touched.
    pub(crate) decompress: f64,
    /// A swapped page is touched.
    pub(crate) swap_in: f64,
    /// A shared page is written.
    pub(crate) cow_break: f64,
    /// The guest reads a page from its own disk that it had to drop or swap.
    pub(crate) guest_io: f64,
    /// How often per second a page of the working set is touched that is not there.
    pub(crate) touches_s: f64,
}

pub(crate) const COSTS: Costs = Costs {
    balloon: 1.0,
    decompress: 10.0,
    swap_in: 100.0,
    cow_break: 2.0,
    guest_io: 100.0,
    touches_s: 0.15,
};
