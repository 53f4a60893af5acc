//! In whose hands is each page of a guest, and where is its content?
//!
//! # Nouns
//! - [`State`]: where a page's content is, one byte for each page.
//! - [`Claim`]: pages in one thread's hands. The thread that moves a page to [`State::InTransit`] makes every call that
//!   fills or empties it, settles it, and then wakes the threads that faulted meanwhile ([`settle`]).
//! - [`Location`]: the 32 bits that say where exactly the content is. Their kind goes with the state: an index into the
//!   pools, a handle of the compressed store, a slot of the swap file, or a place in the sampling area.
//! - [`Marks`]: what a page is not to be used for. **Pins** count I/O in flight. **Pending** pages were written since
//!   they were last hashed.
//!
//! # Who owns whom
//! The [`PageTable`] owns all of it. All threads of a region share one table without a lock. Nothing here knows of
//! memory, of the kernel or of a manager.
//!
//! # Invariants
//! 1. A state changes by compare-exchange only, and only as [`State::may_become`] allows.
//! 2. A location is set by the page's owner only, before it settles the page.
//! 3. A claim that is dropped without having been settled ends the process.

mod claim;
mod handover;
mod location;
mod marks;
mod page_table;
mod state;

pub(crate) use claim::Claim;
pub(crate) use handover::{Waiters, claim_run, settle};
pub(crate) use location::Location;
pub(crate) use marks::Marks;
pub(crate) use page_table::{PageTable, Pinned};
pub(crate) use state::STATES;
pub use state::State;
