//! Who gets how much of a host's memory, and which pages are stored once?
//!
//! The manager is trusted; the processes that it talks to are not. It never maps guest memory and never uses KVM.
//!
//! # Who owns whom
//! [`manager::Manager`] decides. It owns the [`registry::Registry`] with the [`policy::Policy`], what each guest was told,
//! who speaks on which connection, and when the next round is due. Events go in with the time, effects come out. It
//! asks no clock and the kernel nothing, so that a test drives it through a day in seconds (`manager/tests`).
//!
//! [`host::Host`] owns the manager, behind one lock, and what the kernel has of it: watches of processes and sharing
//! domains (`processes`), connections (`links`), the file for the next manager (`keeper`), the control group
//! ([`cgroup`]). Its threads find out what happens and carry the effects out in their order.
//!
//! # Files
//! | question | decides | finds out, carries out |
//! |---|---|---|
//! | what happens, and what is to be done? | [`manager`] (`event`) | [`host`] |
//! | who is here, and what was promised? | [`registry`], `guest_process`, [`groups`], `own_swap`, `refusal` | `admission`, `processes` |
//! | who speaks, how much, and is heard? | `manager/connections`, `rate_limiter`, `connection_limits`, [`penalty`], `listening_time` | `guest_socket`, `pages`, `links`, `outgoing` |
//! | who should hold how much? | [`policy`], [`limiter`], `limit`, [`member`], `deal`, [`pool_room`] | |
//! | when is that asked, and who is told? | `manager/timing`, `sent_orders` | `rounds`, `trigger` |
//! | what does the machine say? | | [`survey`], [`budget`], [`cgroup`], [`backing()`] |
//! | what does the next manager have to know? | `registry/returning` | `keeping`, `keeper`, [`kept`] |
//! | what do people see? | [`picture`], [`statistics`], [`above_limit`], [`standstill`], `peer_lines`, `names` | [`api`] |
//!
//! # Nouns
//! - A guest is a number, [`allocator::GuestId`], given once. Its process is a [`registry::ProcessId`]: number and start
//!   time, by the kernel's word.
//! - [`member::Member`]: one guest as the policy sees it. [`registry::ManagedProcess`]: its process and connection.
//! - [`policy::Round`]: one round, values in, orders out. `limiter::Limiter`: who may hold how much now.
//!
//! # Invariants
//! 1. A guest's references go only when the kernel says that its process is dead.
//! 2. The sum of all limits never exceeds the budget less pools, the manager and a margin. Minimums hold at the cost of
//!    that, and limits of a manager before count from when their guests are heard, or for what they hold.
//! 3. An order goes to the guest that it was made for, and to no other that has its name, number or connection.
//! 4. No thread holds the manager's lock while it reads or writes a socket, or asks what processes hold.
//! 5. A guest that waits for memory has a round within 250 ms.
//!
//! # Known holes
//! See [docs/host.md](../../../docs/host.md#known-holes). A change at the API is applied under the manager's lock by a
//! call, [`manager::Manager::change`], and not by an event: it has an answer.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![forbid(unsafe_code)]

pub mod above_limit;
mod admission;
pub mod api;
mod backing;
pub mod budget;
pub mod cgroup;
mod connection_limits;
mod deal;
pub mod groups;
mod guest_process;
mod guest_socket;
pub mod host;
mod keeper;
mod keeping;
pub mod kept;
mod limit;
pub mod limiter;
mod links;
mod listening_time;
mod lock;
pub mod manager;
pub mod member;
mod names;
mod open_sockets;
mod outgoing;
mod own_swap;
mod pages;
mod peer_lines;
pub mod penalty;
mod persisted;
pub mod picture;
pub mod policy;
pub mod pool_room;
mod processes;
mod rate_limiter;
mod refusal;
pub mod registry;
mod repeats;
mod rounds;
mod sent_orders;
mod sockets;
mod spare;
pub mod standstill;
pub mod statistics;
pub mod survey;
mod trigger;

pub use backing::backing;
