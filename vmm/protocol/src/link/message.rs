//! The messages, as they travel.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::hello::Hello;
use super::reading::{Fields, Message};
use super::version::{FIRST_NEGOTIATED, FIRST_WITH_SWAP, Range, Reading, VersionError};

/// What a VMM says.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromVmm {
    /// First line of a connection.
    Hello(Hello),
    /// Once a second, and after each squeeze.
    Report(Report),
    /// At once, when it changes.
    #[serde(rename = "standing")]
    LimitStatus(LimitStatus),
}

/// What the manager says.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromManager {
    /// The guest is admitted.
    Welcome(Welcome),
    /// The guest's limits were changed: introduce it with these from now on.
    Limits(Limits),
    /// The guest is not admitted; the connection ends.
    Refused {
        /// What is missing and what would make it fit, for people.
        reason: String,
    },
    /// What to do from now on; replaces the orders before.
    Orders(Orders),
    /// End the guest: power it off, and kill it when it does not go.
    Stop {
        /// Milliseconds that it may take; without, as many as its process thinks right. Only for a process that speaks
        /// version [`WITH_GRACE`](super::WITH_GRACE).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grace_ms: Option<u64>,
    },
    /// Stop all virtual CPUs.
    Pause,
    /// Let them run again.
    Resume,
}

impl Message for FromVmm {
    fn read(kind: &str, fields: &mut Fields<'_>) -> Option<Result<Self, serde_json::Error>> {
        Some(match kind {
            "hello" => fields.read().map(Self::Hello),
            "report" => fields.read().map(Self::Report),
            "standing" => fields.read().map(Self::LimitStatus),
            _ => return None,
        })
    }

    fn versions(kind: &str, fields: &Fields<'_>) -> Result<Reading, VersionError> {
        match kind {
            "hello" => fields
                .peek::<Range>()
                .map_or(Ok(Reading::default()), Range::reading),
            _ => Ok(fields.reading),
        }
    }
}

impl Message for FromManager {
    fn read(kind: &str, fields: &mut Fields<'_>) -> Option<Result<Self, serde_json::Error>> {
        Some(match kind {
            "welcome" => fields.read().map(Self::Welcome),
            "limits" => fields.read().map(Self::Limits),
            "refused" => fields.read().map(|Refused { reason }| Self::Refused { reason }),
            "orders" => fields.read().map(Self::Orders),
            "stop" => fields.read().map(|Stop { grace_ms }| Self::Stop { grace_ms }),
            "pause" => fields.read().map(|Nothing {}| Self::Pause),
            "resume" => fields.read().map(|Nothing {}| Self::Resume),
            _ => return None,
        })
    }

    fn versions(kind: &str, fields: &Fields<'_>) -> Result<Reading, VersionError> {
        match kind {
            "welcome" => Ok(fields
                .peek()
                .map_or(Reading::default(), |Newest { newest }| Reading::of(newest))),
            // A manager that refuses may be of any version.
            "refused" => Ok(Reading::of(u32::MAX)),
            _ => Ok(fields.reading),
        }
    }
}

/// The fields of a message that has none.
#[derive(Deserialize)]
struct Nothing {}

/// The fields of [`FromManager::Stop`].
#[derive(Deserialize)]
struct Stop {
    #[serde(default)]
    grace_ms: Option<u64>,
}

/// The fields of [`FromManager::Refused`].
#[derive(Deserialize)]
struct Refused {
    reason: String,
}

/// What a welcome says of its sender.
#[derive(Deserialize)]
struct Newest {
    #[serde(default = "without_negotiation")]
    newest: u32,
}

fn without_negotiation() -> u32 {
    FIRST_NEGOTIATED - 1
}

fn is_without_negotiation(version: &u32) -> bool {
    *version < FIRST_NEGOTIATED
}

/// A group of guests that claims memory as one guest does. The first guest that names it brings it about; one that
/// comes later joins what is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLimits {
    /// Its name, unique on the host.
    pub name: String,
    /// Shares for all members together.
    pub shares: u32,
    /// Memory that the members always get together, bytes.
    #[serde(default)]
    pub min: u64,
    /// Memory that they never exceed together, bytes; without it there is no limit.
    #[serde(default)]
    pub max: Option<u64>,
}

/// Limits that were changed while the guest ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Guaranteed memory, bytes.
    pub min: u64,
    /// Shares for the whole guest.
    pub shares: u32,
    /// Its group, where it is in one.
    pub group: Option<GroupLimits>,
}

impl Limits {
    /// Whether these are the limits that `hello` names.
    pub fn are_of(&self, hello: &Hello) -> bool {
        (self.min, self.shares, &self.group) == (hello.min, hello.shares, &hello.group)
    }
}

/// The manager's answer to a guest that it admits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both sides speak from now on.
    #[serde(
        default = "without_negotiation",
        skip_serializing_if = "is_without_negotiation"
    )]
    pub version: u32,
    /// The newest version that the manager speaks.
    #[serde(
        default = "without_negotiation",
        skip_serializing_if = "is_without_negotiation"
    )]
    pub newest: u32,
    /// Seconds between two plans; for people.
    pub rebalance_seconds: u32,
}

/// What a guest's process is to do until told otherwise. Pages are 4 KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Orders {
    /// Size that the balloon is to have.
    pub balloon_pages: u64,
    /// Pages to compress, once.
    pub compress_pages: u64,
    /// Pages to swap out, once.
    pub swap_pages: u64,
    /// Blocks of 2 MiB to put under management, once: until then they are neither scanned nor sampled.
    pub split_blocks: u32,
    /// Part of one CPU that scanning may use, 0 to 1. 0 stops it.
    pub scan_cpu: f64,
    /// Pages a second that scanning may look at.
    pub scan_pages_per_second: u64,
    /// Pages in a sample, and how many seconds it lasts. 0 samples nothing.
    pub sample_pages: u32,
    /// Length of a sampling period, seconds.
    pub sample_seconds: u32,
    /// Bytes that the guest's process may hold, by the kernel's count of anonymous memory and page tables. `None`: no
    /// limit.
    pub limit_bytes: Option<u64>,
    /// Bytes beyond the limit that the manager means to give once it has them. A guest that is owed nothing makes room
    /// for its growth itself.
    pub owed_bytes: u64,
}

/// How a guest keeps to its limit; `standing` on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitStatus {
    /// The limit that holds by now.
    pub limit_bytes: Option<u64>,
    /// Whether every page that grows is counted.
    pub gated: bool,
    /// Accesses that wait for memory.
    pub waiting: u64,
}

/// What a guest's process holds and has seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Pages by state.
    pub pages: PageCounts,
    /// Sampled activity: the last full period and the running one.
    pub activity: Activity,
    /// The balloon, where there is one.
    pub balloon: Option<BalloonReport>,
    /// Copy-on-write breaks since the start.
    pub cow_breaks: u64,
    /// Pages written per second, from the last scan.
    pub written_per_second: u64,
    /// Pages brought back from the compressed store and the swap file since the start.
    pub pages_in: u64,
    /// Bytes held in the compressed store.
    pub store_bytes: u64,
    /// CPU that the engine has used since the start, microseconds.
    pub engine_cpu_us: u64,
    /// Whether the virtual CPUs stand still.
    #[serde(default)]
    pub paused: bool,
    /// Pools of which the guest may have pages. Those that are not the manager's own are of managers that are gone.
    #[serde(default)]
    pub old_pools: Vec<PoolSize>,
    /// When this was sent, microseconds on the machine's monotonic clock.
    #[serde(default)]
    pub sent_us: u64,
    /// What its process can still swap; none where it has no swap folder, or does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<SwapRoom>,
}

impl Report {
    /// The same report for a manager that speaks `version`.
    #[must_use]
    pub fn in_version(self, version: u32) -> Self {
        Self {
            swap: self.swap.filter(|_| version >= FIRST_WITH_SWAP),
            ..self
        }
    }
}

/// What a guest's process can still swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapRoom {
    /// The file system of its swap folder: `st_dev` of that folder.
    pub device: u64,
    /// Bytes free there.
    pub free_bytes: u64,
    /// Bytes that its swap file has on the disk and no page is in.
    pub spare_bytes: u64,
}

/// A pool. One of a manager that is gone stays in memory until the last guest has let go of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSize {
    /// The number of its file, the same in all processes.
    pub id: u64,
    /// Bytes that it occupies, by the kernel's count.
    pub bytes: u64,
}

/// Pages of 4 KiB by state; together the guest's size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageCounts {
    /// Memory of the guest's own, broken and huge pages included.
    pub private: u64,
    /// Backed by a pool page.
    pub shared: u64,
    /// The kernel's zero page.
    pub zero: u64,
    /// In the compressed store.
    pub compressed: u64,
    /// In the swap file.
    pub swapped: u64,
    /// In the balloon.
    pub ballooned: u64,
    /// Never touched, or given up.
    pub empty: u64,
}

/// Outcome of sampling: of `drawn` pages, `touched` were used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Full periods so far.
    pub periods: u64,
    /// The last full period.
    pub last: (u32, u32),
    /// The period under way.
    pub running: (u32, u32),
}

/// The balloon device's side of things.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BalloonReport {
    /// Pages the guest was asked to give.
    pub target_pages: u64,
    /// Pages the guest says it gave.
    pub actual_pages: u64,
    /// No driver, or one that does not answer: fall back to compression and swap.
    pub unresponsive: bool,
    /// The guest's statistics by their names in Firecracker's API, bytes or counts.
    pub statistics: BTreeMap<String, u64>,
    /// Seconds since the guest sent them.
    pub statistics_age_seconds: Option<f64>,
}
