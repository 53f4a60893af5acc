//! What happens when a thread touches a page that is not there, or must not be written yet?
//!
//! # Nouns
//! - The [`Handler`] is the thread that resolves faults: from memory alone, one page or one group at a time.
//! - The [`SwapThread`] reads swapped pages for it, and deals with compressed pages that are damaged.
//! - [`Sources`] are where pages come back from.
//!
//! # Who owns whom
//! The region owns both threads. The handler owns the only sender to the swap thread, so that it ends after the handler.
//!
//! # Invariants
//! 1. The handler waits for no lock that a user of guest memory holds, for no I/O and for no manager. It never allocates.
//! 2. A page that the handler cannot resolve at once has its state back before the handler looks at another.
//! 3. A thread that dies while its region is alive ends the process: closing its descriptor would show the guest zeros.

mod handler;
mod swap_thread;
mod worker;

pub(crate) use handler::Handler;
pub(crate) use swap_thread::SwapThread;
pub(crate) use worker::Sources;
