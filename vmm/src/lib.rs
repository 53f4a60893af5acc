//! The `levy` command: what people type, and what this machine can run.
//!
//! # Nouns
//! - [`cli`]: the commands.
//! - [`doctor`]: what this machine can run, what is missing, and what to do about it.
//!
//! What the commands do lies in crates of their own, along the boundary of trust: `levy-machine` (one guest's process),
//! `levy-manager` (the trusted manager), `levy-member` (a guest's memory under a manager), `levy-launcher` (starting
//! guests), `levy-bench`, and `levy-protocol` (what all of them say to each other).
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod cli;
pub mod doctor;
mod out;

pub use out::{NotShown, shown};
