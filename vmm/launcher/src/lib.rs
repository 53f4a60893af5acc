//! Starting guests, talking with the agents in them, and telling how they fare: what is behind `levy run` and `levy up`.
//!
//! One [`Session`] per guest: its `levy vmm` process, its agent, its control socket. A [`Fleet`] starts the guests of a
//! launch, hears all of them, and tells people and programs ([`LaunchEvent`]) how they fare. It ends when all guests have
//! ended, and nothing of them is left then: each process removes its own taps and overlays, and the launcher removes
//! their sockets and the folder it gave them.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod allowance;
pub mod api_client;
mod fleet;
mod guest;
mod guest_args;
mod launch_event;
mod layers;
mod screen;
mod session;
mod summary;

pub use fleet::{Fleet, FleetError, Manager, OnReboot, Plan, PlannedGuest, manage};
pub use guest_args::GuestArgs;
pub use launch_event::LaunchEvent;
pub use layers::keep as keep_layers;
pub use screen::{Screen, ScreenStyle};
pub use session::{Note, OneGuest, Session, SessionFiles, WaitError};
pub use summary::{GuestSummary, Summary};
