//! The manager: many guests, one memory.

pub mod budget;
pub mod census;
pub mod cgroup;
pub mod groups;
pub mod host;
pub mod incidents;
pub mod limiter;
pub mod member;
pub mod place;
pub mod policy;
pub mod roster;
