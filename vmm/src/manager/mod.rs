//! The manager: many guests, one memory.
//!
//! | question | where |
//! |---|---|
//! | who is here, and what was promised? | [`roster`], [`groups`]; for the next manager [`kept`] |
//! | who says what, and is told what? | `connections`, `pages`, `links`; how they behave, [`incidents`] |
//! | what does the machine say? | [`census`], [`survey`], [`budget`], [`cgroup`] |
//! | who should hold how much? | [`policy`], [`limiter`], [`member`]; when that is asked, `rounds` |
//! | what do people see? | [`picture`] |

mod attention;
mod bell;
pub mod budget;
pub mod census;
pub mod cgroup;
mod connections;
mod deal;
mod doors;
pub mod groups;
pub mod host;
pub mod incidents;
mod keeper;
pub mod kept;
mod limit;
pub mod limiter;
mod links;
pub mod member;
mod names;
mod outgoing;
mod pages;
pub mod picture;
pub mod place;
pub mod policy;
mod refusal;
pub mod roster;
mod rounds;
mod seat;
mod spare;
pub mod survey;
mod told;
