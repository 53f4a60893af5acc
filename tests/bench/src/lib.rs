//! What every bench of this project shares: the report it writes and the numbers it draws from samples.
//!
//! A bench is one program in `src/bin`. It measures its rival in the same run, prints a table for people and,
//! with `--json FILE`, writes a [`Report`]. A bench never asserts a time: the machine is noisy, the reader judges.
#![forbid(unsafe_code)]

pub use levy_bench::{Report, Samples};
