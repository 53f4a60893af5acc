//! What do Levy's processes say to each other, and where do they meet?
//!
//! Types and encodings only: nothing here decides anything. Every other crate of Levy may depend on this one, and this
//! one depends on none of them.
//!
//! # Nouns
//! - [`link`]: a guest's process and its manager: hello, reports up, orders down.
//! - [`GuestEvent`]: what a guest's process reports to its launcher, line by line.
//! - [`control`]: requests to one guest's process, and its replies.
//! - [`api`]: the bodies of the manager's HTTP API.
//! - [`frame_space`]: which guest frame numbers a guest of a given size has.
//! - [`outcome`]: how a guest ended.
//! - [`run_dir`]: the directory in which a manager and its guests find each other; the folders of launchers.
//! - [`socket`]: unix sockets whose files go with their owner.
//! - [`mark`]: which processes a guest may have taken over.
//! - [`printable`]: words of other processes, fit for a terminal.
//! - [`process_memory`]: what a process holds of the machine's memory, the figure that budget and limits are made of.
//!
//! # Invariants
//! 1. A message is bounded in length before it is parsed, and a field that no version defines is refused or ignored,
//!    never guessed.
//! 2. Who speaks is never in a message: the kernel says it (`SO_PEERCRED`).
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![forbid(unsafe_code)]

pub mod api;
pub mod control;
mod error_chain;
pub mod frame_space;
mod guest_event;
mod limits;
pub mod link;
pub mod mark;
pub mod outcome;
mod printable;
pub mod process_memory;
pub mod run_dir;
pub mod socket;

pub use error_chain::error_chain;
pub use guest_event::{GuestEvent, GuestState};
pub use limits::{cure, no_memory, not_started, raise_open_files, raise_stack};
pub use printable::{printable, printable_json};

/// The example of the README runs with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
