//! Which pages were written, which are quiet, and what does the manager say to those?
//!
//! # Nouns
//! - The [`Scanner`] goes over the memory pass by pass, talks to the manager, and merges the longest runs first.
//! - The **looker** finds what was written, what has gone quiet and what broke, one **chunk** of 2 MiB at a time.
//! - **Backoff** says which chunks rest because looking at them brought nothing.
//! - [`Priorities`] are runs to look at before the pass gets to them.
//! - **Speculation** claims pool pages for what lies between two pages that were just granted theirs.
//!
//! # Who owns whom
//! The scanner owns the looker, the backoff and the port to the manager. It borrows the engine for one short piece of
//! work at a time.
//!
//! # Invariants
//! 1. The engine lock is never held while the manager is asked.
//! 2. A page is reported only after it was armed in one look and found unwritten in a later one.
//! 3. A reference that was granted is merged, kept as a candidate, or owed back: none is forgotten while its manager lives.
//!
//! # Known holes
//! A long run that comes late does not push out short ones when mappings are used up.

mod backoff;
mod look;
mod priorities;
mod scanner;

pub(crate) use priorities::Priorities;
pub use scanner::Step;
#[cfg(test)]
pub(crate) use scanner::held_slots;
pub(crate) use scanner::{Chunks, Scanner};

/// Pages looked at under one hold of the engine lock, 2 MiB: what was sketched is still in a core's cache when it is
/// published and compared.
const CHUNK: u32 = 512;
