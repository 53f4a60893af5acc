//! Starting guests, talking with the agents in them, and telling how they fare: what is behind `levy run` and `levy up`.
//!
//! One `levy vmm` process per guest. The launcher hears of everything as a `Note`: what the VMM processes report,
//! what the agents say, Ctrl-C. It ends when all guests have ended, and nothing of them is left then: each process
//! removes its own sockets, taps and overlays, and the launcher removes the folder it gave them.

mod agent;
pub mod api_client;
mod fleet;
mod guest;
mod guest_args;
mod layers;
mod screen;
mod summary;
mod vmm_process;

use levy_agent::Event as AgentEvent;
use serde_json::Value;

pub use agent::Agent;
pub use fleet::{Fleet, FleetError, Manager, OnReboot, Plan, PlannedGuest, manage};
pub use vmm_process::VmmProcess;

pub use guest_args::GuestArgs;
pub use layers::keep as keep_layers;
pub use screen::{Screen, ScreenStyle};
pub use summary::{GuestSummary, Summary};

/// Something that happened to a guest, by its number.
#[derive(Debug)]
pub enum Note {
    /// Its VMM process reported something.
    Vmm(usize, Value),
    /// Its VMM process closed its report: it has ended or is about to.
    Closed(usize),
    /// Its agent said something.
    Agent(usize, Box<AgentEvent>),
    /// Ctrl-C or a relative of it.
    Signal,
}
