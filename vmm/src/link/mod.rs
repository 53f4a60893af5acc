//! What a guest's VMM process and the manager say to each other.
//!
//! The VMM connects to the manager's unix socket and introduces itself ([`Hello`]); the manager admits it
//! ([`Welcome`]) or refuses with a reason. The hello names the versions of the protocol that the VMM speaks, the welcome
//! the one that both speak from then on. From then on it is one JSON object a line, once a second a [`Report`] up and
//! [`Orders`] down. A guest that shares pages opens a second connection, to the manager's page socket, for the binary
//! batches of `page_share::SocketPort`; the manager knows by the process at its other end which guest it is.
//!
//! # What a hostile peer can do, and what still holds
//! A VMM process is as trustworthy as the guest that may have broken it. Lines are bounded, fields are checked when
//! parsed, numbers that nobody could mean are clamped where they are used, and whoever breaks the rules is cut off: its
//! guest runs on alone, its references stay counted until the process is dead. A manager that lies can starve a guest
//! or stop it, but neither read nor change its memory.
#![forbid(unsafe_code)]

mod line;
mod message;
mod reading;
#[cfg(test)]
mod transcripts;
mod version;

pub use line::{Line, LineError, Lines};
pub use message::{
    Activity, BalloonReport, FromManager, FromVmm, GroupLimits, Hello, Limits, OldPool, Orders, PageCounts,
    Report, Sharing, Standing, Welcome,
};
pub use reading::Message;
pub use version::{OLDEST, Range, VERSION, VersionError};
