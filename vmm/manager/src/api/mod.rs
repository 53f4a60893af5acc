//! The manager's HTTP API.
//!
//! HTTP/1.1 with JSON bodies on the unix socket `api.sock` in the manager's run directory:
//!
//! | request | answers |
//! |---|---|
//! | `GET /host` | [`types::HostView`]: budget, state, free memory, sharing domains |
//! | `PUT /host` | takes a [`types::HostChange`], answers like `GET` |
//! | `GET /guests` | [`types::GuestList`] |
//! | `GET /guests/{name}` | [`types::GuestView`]: limits, pages by state, target and its reason, activity, balloon |
//! | `PATCH /guests/{name}` | takes a [`types::GuestChange`], answers like `GET` |
//! | `GET /guests/{name}/balloon/statistics` | [`types::BalloonStatistics`], flat as Firecracker's |
//! | `GET /groups`, `GET /groups/{name}` | [`types::GroupView`] by name, or one |
//! | `PATCH /groups/{name}` | takes a [`types::GroupChange`], answers like `GET` |
//! | `POST /guests/{name}/stop`, `pause`, `resume` | 202 and the guest: it was told, it has not necessarily done it |
//!
//! Whatever is not 2xx has a [`types::Failure`] for a body. `docs/host-api.md` has examples.
//!
//! # Invariants
//! 1. One thread serves all clients; a connection carries one request and lives [`PATIENCE`] at most, whatever its
//!    client does or does not do. At most [`CONNECTIONS`] are served at a time. For one more,
//!    the process with the most connections loses its oldest.
//! 2. Requests and answers are bounded; nothing a client sends is kept.
//! 3. No process of a guest is served (`asker`).
//! 4. A change is made in full or not at all, and refused where it would break a promise made to a guest.

mod asker;
mod client_slots;
mod failure;
mod routes;
mod server;
#[cfg(test)]
mod tests;
pub mod view;
mod workers;

use std::time::Duration;

pub use levy_protocol::api as types;
pub use server::{ServeError, Server, serve};

/// How long a connection may last.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Connections served at a time.
pub const CONNECTIONS: usize = 64;

/// Bytes in the longest request body.
pub const BODY_LIMIT: usize = 16 << 10;
