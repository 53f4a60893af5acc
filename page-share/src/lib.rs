//! Content-based page sharing, sampling, compression and swap for memory that a VMM owns.

mod hash;
mod page;
pub mod port;

pub use hash::{DomainKey, PageHash, PageHasher, Sketch};
pub use page::{Gfn, GuestId, PAGE_SHIFT, PAGE_SIZE, Page, PoolGeneration, Slot};
