//! The control socket of one VMM: a request per line, a reply per line, both JSON.
//!
//! ```text
//! > {"do":"status"}
//! < {"ok":{"state":"ready","pid":4711,"uptime_ms":5210,"timing":{"started_ms":48,"booted_ms":4102,"ready_ms":4130}}}
//! > {"do":"explode"}
//! < {"error":"unknown variant `explode`, expected one of …"}
//! ```
//!
//! Requests only carry what their sender wants; everything is decided by the guest's supervisor, one request after
//! the other.

mod client;

pub use client::{Client, ClientError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most pages in one answer to [`Request::Inventory`].
pub const MOST_PAGES: u32 = 8192;

/// What can be asked of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How far is it?
    Status,
    /// Memory and device figures.
    Stats,
    /// Where each vCPU is; pauses them for a moment.
    Registers,
    /// Stop all vCPUs; replies when they have left the guest.
    Pause,
    /// Let them run again.
    Resume,
    /// What is in each page? Only of a guest that is paused; replies with an
    /// inventory (`levy_member::Inventory`).
    Inventory {
        /// Names contents: 64 hexadecimal digits of the asker's choice. Ask all guests that are to be compared with one.
        key: String,
        /// The first guest frame.
        #[serde(default)]
        first: u32,
        /// How many, at most [`MOST_PAGES`].
        #[serde(default = "default_pages")]
        pages: u32,
    },
    /// Change the balloon, as far as something is given; replies with its figures.
    Balloon {
        /// How much memory the guest is to give up in all, in MiB.
        #[serde(default)]
        amount_mib: Option<u64>,
        /// Whether the guest may take memory back rather than kill a process; settled when it started.
        #[serde(default)]
        deflate_on_oom: Option<bool>,
        /// Seconds between two requests for the guest's statistics.
        #[serde(default)]
        stats_polling_interval_s: Option<u64>,
    },
    /// What the guest says about its memory, and how long ago it did.
    BalloonStatistics,
    /// Have the guest switch itself off, and take it down after the grace time.
    Stop {
        /// Milliseconds until it is taken down.
        #[serde(default = "default_grace")]
        grace_ms: u64,
    },
    /// Have the guest's agent restart it.
    Restart,
    /// Take it down as hanging.
    GiveUp {
        /// What it did not do.
        because: String,
    },
}

fn default_pages() -> u32 {
    MOST_PAGES
}

fn default_grace() -> u64 {
    10_000
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// What was asked for.
    Ok(Value),
    /// Why not.
    Error(String),
}
