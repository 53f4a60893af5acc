//! What do guests cost and gain together on this machine, with its user's own images?
//!
//! `levy bench NAME`, one file for each bench. All of them work on a [`Stage`]: a manager of their own with settings of
//! their choice, guests that come, work, rest and go, and a [`Sample`] of every guest once a second. A bench measures
//! its rival in the same run, never asserts a time, and leaves behind a [`Report`] for programs, a table for people,
//! and a [`Figure`] where the user wants one. A bench that cannot go on leaves its [`Draft`].
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![forbid(unsafe_code)]

mod actor;
mod draft;
mod figure;
mod hints;
mod interrupt;
mod ksm;
mod oracle;
pub mod overcommit;
mod overhead;
mod progress;
mod report;
mod sample;
mod samples;
mod saving;
mod scene;
mod sharing;
mod stage;
mod tax;
mod versus_ksm;

pub use actor::{Run, Tick};
pub use draft::Draft;
pub use figure::{Figure, FigureError, Line, Panel, Stroke};
pub use hints::HintedReads;
pub use interrupt::Interrupt;
pub use oracle::Findings;
pub use overhead::overhead;
pub use report::{Report, ReportError};
pub use sample::{GuestSample, Sample};
pub use samples::Samples;
pub use scene::{Outcome, Scene};
pub use sharing::Sharing;
pub use stage::{Guest, RunId, Stage, StageError};
pub use tax::tax;
pub use versus_ksm::VersusKsm;
