//! The life of one guest: built, started, watched and taken down by one thread that hears of everything as an
//! [`Event`](crate::event::Event).

mod agent_lines;
mod build;
mod due;
mod duties;
mod footprint;
mod watch;

pub use build::{Machine, SetupError};
pub use footprint::Footprint;
pub use watch::{Supervisor, Timing};
