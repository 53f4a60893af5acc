//! What a session hears of its guest.

use std::sync::Arc;

use levy_agent::Event as AgentEvent;
use levy_protocol::GuestEvent;

/// Something that a session heard.
#[derive(Debug)]
pub enum Note {
    /// The guest's process reported something.
    Vmm(GuestEvent),
    /// The guest's agent said something.
    Agent(Box<AgentEvent>),
    /// So many lines of its agent or its process came too fast, and were dropped.
    Missed(u64),
    /// The guest's process closed its report: it has ended or is about to.
    Closed,
}

/// Where notes go. Called on threads of the session's own, one for the process and one for the agent.
pub(super) type Listener = Arc<dyn Fn(Note) + Send + Sync>;
