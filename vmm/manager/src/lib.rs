//! Who gets how much of a host's memory, and which pages are stored once?
//!
//! The manager is trusted; the processes that it talks to are not. It never maps guest memory and never uses KVM.
//!
//! # Nouns
//! | question | where |
//! |---|---|
//! | who is here, and what was promised? | [`registry`], [`groups`]; for the next manager `keeping`, [`kept`] |
//! | who says what, and is told what? | `connections`, `admission`, `pages`, `links`; what they may send, `rate_limiter`, `connection_limits`, [`penalty`] |
//! | what does the machine say? | [`survey`], [`budget`], [`cgroup`] |
//! | who should hold how much? | [`policy`], [`limiter`], [`member`]; pools, `pool_room`; when that is asked, `rounds` |
//! | what do people see? | [`picture`], [`api`] |
//!
//! - [`host::Host`]: the manager at work: sockets, threads, the round.
//! - [`registry::Registry`]: the registry of admitted guests: process, limits, sharing domain.
//! - [`member::Member`]: one guest as the policy sees it; [`policy::Policy`]: one round, values in, orders out;
//!   `limiter::Limiter`: who may hold how much now.
//! - [`budget`], [`cgroup`], [`groups`]: what may be spent, the kernel's `memory.high`, guests that claim memory together.
//! - [`backing()`]: what may be promised as swap.
//! - [`api`]: the HTTP API.
//!
//! # Invariants
//! 1. A guest's references go only when the kernel says that its process is dead.
//! 2. The sum of all limits never exceeds the budget less pools, the manager and a margin.
//! 3. No thread holds the registry's lock while it reads or writes a socket.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![forbid(unsafe_code)]

mod admission;
pub mod api;
mod backing;
pub mod budget;
pub mod cgroup;
mod connection_limits;
mod connections;
mod deal;
pub mod groups;
mod guest_process;
pub mod host;
mod keeper;
mod keeping;
pub mod kept;
mod limit;
pub mod limiter;
mod links;
mod listening_time;
pub mod member;
mod names;
mod open_sockets;
mod outgoing;
mod pages;
mod peer_lines;
pub mod penalty;
pub mod picture;
pub mod policy;
mod pool_room;
mod rate_limiter;
mod refusal;
pub mod registry;
mod repeats;
mod rounds;
mod sent_orders;
mod sockets;
mod spare;
pub mod statistics;
pub mod survey;
mod trigger;

pub use backing::backing;
