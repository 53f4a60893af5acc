//! What host and guest agent say to each other: one JSON object per line, both ways.
//!
//! The host writes [`Command`] lines, the agent writes [`Event`] lines; both ends of the wire use these types. The
//! channel is the guest's first virtio console (`/dev/hvc0`, raw), or a named virtio port `levy.agent`, or, failing
//! both, the human console with [`CONSOLE_PREFIX`] before each line.
//!
//! ```
//! use levy_agent::{Command, Event, Report};
//!
//! let command = Command::parse(r#"{"id":1,"run":"churn","mib":16,"seconds":5}"#).unwrap();
//! assert_eq!(Command::parse(&command.to_line()).unwrap(), command);
//!
//! let event = Event::parse(r#"{"t":812,"event":"boot","agent":"0.1.0","kernel":"6.12.0"}"#).unwrap();
//! assert!(matches!(event.report, Report::Boot { .. }));
//! ```
//!
//! # Order
//! 1. The first line is `boot`: the kernel is up, the agent runs, the channel works.
//! 2. `ready` follows when the root disk is mounted and commands are obeyed. Commands sent earlier wait.
//! 3. Each command is answered by events with its `id`: `run` by `started`, `progress` (once a second), perhaps
//!    `stats`, and exactly one `verdict`; anything else by exactly one `done` or `error`.
//!
//! # What a guest can do
//! A guest owns its end of the channel: lines may be missing, huge, out of order or lies. The host must bound the
//! length of a line by [`MAX_LINE`], treat what [`Event::parse`] refuses as the guest's fault, and decide nothing
//! about memory safety from a report.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![forbid(unsafe_code)]

mod command;
mod event;
mod workload;

pub use command::{Action, Command, ModuleChange};
pub use event::{Event, Report, Verdict};
pub use workload::{
    Churn, Dbench, File, Fill, Idle, Nginx, Pgbench, Phase, Reader, Redis, Toucher, Workload,
};

/// Bytes in the longest line, its newline included. Longer ones are dropped by both ends.
pub const MAX_LINE: usize = 64 * 1024;

/// The name by which the agent knows its port on a virtio console device with several ports.
pub const PORT_NAME: &str = "levy.agent";

/// What stands before each line when the agent has to share the human console.
pub const CONSOLE_PREFIX: &str = "levy-agent: ";
