//! What do guests cost and gain together on this machine, with its user's own images?
//!
//! `levy bench NAME`, one file for each bench. All of them work on a [`Testbed`]: a manager of their own with settings of
//! their choice, guests that come, work, rest and go, and a [`Sample`] of every guest once a second. A bench measures
//! its rival in the same run, never asserts a time, and leaves behind a [`Report`] for programs, a table for people,
//! and a [`Figure`] where the user wants one. A bench that cannot go on leaves its [`PartialResults`].
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![forbid(unsafe_code)]

mod cpu;
mod figure;
mod hints;
mod interrupt;
mod ksm;
mod oracle;
pub mod overcommit;
mod overhead;
mod params;
mod partial_results;
mod progress;
mod quiet;
mod random;
mod report;
mod sample;
mod samples;
mod saving;
mod sharing;
mod tax;
mod testbed;
mod versus_ksm;

pub use cpu::{cpu_of, process_cpu};
pub use figure::{Figure, FigureError, Line, Panel, Stroke};
pub use hints::HintedReads;
pub use interrupt::Interrupt;
pub use ksm::Ksmd;
pub use oracle::Findings;
pub use overhead::overhead;
pub use params::{Outcome, Params};
pub use partial_results::PartialResults;
pub use random::Random;
pub use report::{Report, ReportError};
pub use sample::{GuestSample, Sample};
pub use samples::Samples;
pub use sharing::Sharing;
pub use tax::tax;
pub use testbed::{Guest, Run, RunId, Testbed, TestbedError, Tick};
pub use versus_ksm::VersusKsm;
