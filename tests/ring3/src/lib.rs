//! How does guest memory behave under a *running* guest, where no guest kernel can boot?
//!
//! A guest of this crate has no kernel: KVM starts it directly in 64-bit ring 3 with identity page tables, and it
//! runs one small assembled program per vCPU. That needs no privileged guest instruction, so it runs at native
//! speed even on a software KVM that only interprets ring 0, and it runs the same on hardware and nested.
//!
//! - [`Memory`] is plain anonymous memory for a guest; [`Guest::over`] takes memory that something else owns.
//! - [`Work`] says which [`Program`] a vCPU runs over which pages.
//! - [`Guest`] is the running machine: one thread per vCPU, started, paused, resumed and stopped from outside.
//! - [`Counters`] are what the guest counts while it runs, read without stopping it.
//! - [`available`] says whether this machine can run any of it; tests print the reason with [`skip`].
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! # fn main() -> Result<(), ring3::Error> {
//! if let Err(reason) = ring3::available() {
//!     ring3::skip("the example of the crate", &reason);
//!     return Ok(());
//! }
//! let memory = Arc::new(ring3::Memory::anonymous(16 << 20)?);
//! let guest = ring3::Guest::new(&memory, &[ring3::Work::access(0..4096, 512)])?;
//! guest.start();
//! guest.wait(Duration::from_secs(20), |vcpus| vcpus[0].reads > 1000 && vcpus[0].writes > 1000)?;
//! guest.stop()?;
//! # Ok(())
//! # }
//! ```
//!
//! # What a guest's address space looks like
//! | guest physical = virtual | what |
//! |---|---|
//! | 0 | the *board*: code, page tables, TSS, one control page and stack per vCPU, expected page states |
//! | [`MEMORY_BASE`] | the memory under test, all of it |
//!
//! The board is not part of the memory under test. So the counters stay readable and the guest's own idea of what
//! its pages hold stays right, whatever an engine under test does to the memory.
//!
//! # Invariants
//! 1. A program reads and writes no memory under test outside the pages it was given.
//! 2. [`Program::Churn`] checks all 4096 bytes of a page against a table kept outside the memory under test, before
//!    each write and on a random page beside it. A lost, repeated, invented or torn write is counted and reported.
//! 3. A vCPU that leaves for another reason than its program's own exits ends its thread with an [`Error`];
//!    [`Guest::wait`] and [`Guest::stop`] return it.
//! 4. Pausing sets `immediate_exit` *and* sends a signal, under the lock that the vCPU takes before it enters the
//!    guest, so that no kick is lost.
//!
//! # Known holes
//! No guest interrupts and no exception handlers: any exception in the guest is a triple fault and reported so.

mod board;
mod churn;
mod error;
mod guest;
mod machine;
mod memory;
mod program;
mod vcpu;

pub use board::{Counters, MEMORY_BASE, Mismatch};
pub use error::{Error, Unavailable};
pub use guest::Guest;
pub use machine::available;
pub use memory::Memory;
pub use program::{Program, Work};

/// Bytes in a page, of the guest and of the host.
pub const PAGE: usize = 4096;

/// Reports on stderr that `test` did not run, and why; a line that starts with `skipped: ` is what CI looks for.
pub fn skip(test: &str, reason: &Unavailable) {
    eprintln!("skipped: {reason} ({test})");
}
