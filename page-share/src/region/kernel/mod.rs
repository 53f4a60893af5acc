//! What can the kernel do for a region, and how much of it is left?
//!
//! # Nouns
//! - An [`Arena`] is address space whose pages this crate may rearrange, reserved here or adopted from a caller. A
//!   [`Span`] is a run of pages inside one. A [`Slab`] is an arena of plain bytes.
//! - A [`Userfault`] watches spans, fills and moves their pages, and reports who waits for them.
//! - The [`Pagemap`] knows which pages are there, which were written and which the kernel has copied.
//! - [`Mappings`] are the process's budget below vm.max_map_count.
//!
//! # Who owns whom
//! An arena owns its mapping, a userfault its descriptor. Nothing here knows of guests, pages' states or pools.
//!
//! # Invariants
//! 1. Every call works on spans, and spans come from arenas only: no other memory of the process is touched.
//! 2. No Rust reference points into memory that a guest can write.
//! 3. One method is one call to the kernel. What a refusal means is the caller's to know.

mod advice;
mod arena;
mod cpu;
mod features;
mod ioctl;
mod mappings;
mod pagemap;
mod slab;
mod span;
mod userfault;

pub(crate) use arena::{Arena, map_anonymous, map_private, new_mappings_are_locked, remap};
pub(crate) use cpu::thread_cpu;
pub(crate) use features::{check_release, explain};
pub(crate) use mappings::Mappings;
pub(crate) use pagemap::{Found, Look, Pagemap};
pub(crate) use slab::Slab;
pub(crate) use span::{Span, sketches};
pub(crate) use userfault::{Event, GUEST_FEATURES, POOL_FEATURES, Progress, Userfault, Watch};

/// Pages in a huge page, 2 MiB.
pub(crate) const HUGE_PAGES: u32 = 512;
