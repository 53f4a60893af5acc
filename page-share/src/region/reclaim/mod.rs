//! How do private pages leave memory, and how do they come back when they are touched?
//!
//! # Nouns
//! - The [`ColdStore`] keeps pages that left memory: compressed in a [`Store`], or in the swap file.
//! - A **sample** is random private pages, taken to the [`SampleArea`] for a while to count those that are touched.
//! - A page is **released** when its guest gives it up: it reads zero afterwards, wherever its content was.
//! - **Neighbours** come back with the page that was touched, one group of [`NEIGHBOURS`] at a time.
//!
//! # Who owns whom
//! The cold store and the sample area are shared by the engine, the fault handler and the swap thread. The [`Reclaimer`]
//! is the engine's part and knows the running sample. It borrows the merger, which takes pages for it.
//!
//! # Invariants
//! 1. Always after sharing was tried, and always by taking first: what is stored is what the page was when it left.
//! 2. A stored copy is forgotten by the page's owner only, and a swapped one only after it was read.
//! 3. Bytes that are not what was stored are never served: the page is lost.
//! 4. The store's lock is held for one page at a time, the swap file's while the disk is written; neither while guest
//!    memory is touched.

mod choosing;
mod cold_store;
mod release;
mod sample;
mod store;
mod storing;

use std::sync::Arc;

use crate::region::guest::Guest;
use sample::Running;

pub(crate) use cold_store::{ColdStore, NEIGHBOURS};
pub use release::Release;
pub use sample::Sample;
pub(crate) use sample::SampleArea;
pub use store::{COMPRESSED_LIMIT, Compressed, Compressor, Store, StoreError, StoreHandle};
pub use storing::SwapOutError;

/// Takes pages out of memory on a caller's order, and brings them back.
pub(crate) struct Reclaimer {
    guest: Arc<Guest>,
    cold: Arc<ColdStore>,
    area: Arc<SampleArea>,
    sample: Running,
}

impl Reclaimer {
    /// For pages of `guest` that go to `cold` and, for samples, to `area`.
    pub(crate) fn new(guest: Arc<Guest>, cold: Arc<ColdStore>, area: Arc<SampleArea>) -> Self {
        Self {
            guest,
            cold,
            area,
            sample: Running::default(),
        }
    }
}
