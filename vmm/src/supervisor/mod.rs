//! The life of one guest: built, started, watched and taken down by one thread that hears of everything as an
//! [`Event`].

mod build;
mod duties;
mod footprint;
mod watch;

use std::sync::mpsc::Sender;

pub use build::{Machine, SetupError};
pub use footprint::Footprint;
pub use watch::{Supervisor, Timing};

use crate::control::{Reply, Request};

/// Something that happened to the guest or is asked of it.
#[derive(Debug)]
pub enum Event {
    /// The guest switched itself off.
    PoweredOff,
    /// The guest asked for a restart.
    Restarted,
    /// A vCPU cannot go on.
    Crashed(String),
    /// The guest's kernel panicked; its words.
    Panicked(String),
    /// A whole line from the guest's agent.
    AgentLine(Vec<u8>),
    /// The host asked this process to end (SIGINT, SIGTERM, SIGHUP).
    Signal(&'static str),
    /// Somebody on the control socket asks for something.
    Control(Request, Sender<Reply>),
}
