//! What happens to a guest, on its way to the thread that watches it.

use std::sync::mpsc::Sender;

use levy_protocol::control::{Reply, Request};

/// Something that happened to the guest or is asked of it. What the guest can bring about comes once: its thread ends
/// with it, or its teller tells it the first time only. So the channel needs no bound.
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
    /// The guest's agent has spoken for the first time.
    AgentSpoke,
    /// The guest's agent takes commands.
    AgentReady,
    /// The host asked this process to end (SIGINT, SIGTERM, SIGHUP).
    Signal(&'static str),
    /// A client of the control socket asks for something.
    Control(Request, Sender<Reply>),
}
