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
//! parsed, numbers that make no sense are clamped where they are used, and a process that breaks the rules is cut off:
//! its guest runs on alone, its references stay counted until the process is dead. A manager that lies can starve a
//! guest or stop it, but neither read nor change its memory.
#![forbid(unsafe_code)]

mod hello;
mod line;
mod message;
mod reading;
#[cfg(test)]
mod transcripts;
mod version;

pub use hello::{Hello, Sharing};
pub use line::{Line, LineError, Lines};
pub use message::{
    Activity, BalloonReport, FromManager, FromVmm, GroupLimits, LimitStatus, Limits, Orders, PageCounts,
    PoolSize, Report, SwapRoom, Welcome,
};
pub use reading::Message;
pub use version::{NEWER_FIELDS, OLDEST, Range, VERSION, VersionError, WITH_GRACE};

/// Longest name of a guest, a group or a sharing domain, bytes.
pub const NAME_LIMIT: usize = 64;

/// What such a name takes, for people.
pub const NAME_RULE: &str =
    "1 to 64 of the characters a-z A-Z 0-9 . _ -, not a - first, a letter or a digit among them";

/// Whether guests, groups and domains may be called so: 1 to [`NAME_LIMIT`] letters, digits, `.`, `_` and `-`. Marks alone
/// are none, nor is what begins with `-`: they would be folders or options, as `..` and `--all` are.
pub fn is_name(name: &str) -> bool {
    name.len() <= NAME_LIMIT
        && !name.starts_with('-')
        && name.bytes().any(|byte| byte.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// `name`, where a `what` (guest, group, domain) may be called so.
///
/// # Errors
/// What a name is made of, for people.
pub fn check_name(what: &str, name: &str) -> Result<String, String> {
    if is_name(name) {
        return Ok(name.to_owned());
    }
    Err(format!("{name:?} is not a {what} name: it takes {NAME_RULE}"))
}

/// Microseconds on the machine's monotonic clock, the same in all its processes.
pub fn now_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1000
}
