//! The manager: many guests, one memory.

mod bell;
pub mod budget;
pub mod census;
pub mod cgroup;
mod deal;
mod doors;
pub mod groups;
pub mod host;
pub mod incidents;
mod limit;
pub mod limiter;
pub mod member;
pub mod place;
pub mod policy;
mod refusal;
pub mod roster;
mod seat;
mod told;
