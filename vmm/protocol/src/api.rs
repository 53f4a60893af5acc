//! What travels over the API, for both of its ends.
//!
//! Sizes are bytes unless a name says otherwise. A server may add fields at any time, and clients skip those they do
//! not know; what a client sends is read strictly, so that a misspelt key is an error and not a silence.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `GET /host`: the manager, its memory and its sharing domains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostView {
    /// Version of the manager's program.
    pub version: String,
    /// The manager's process.
    pub pid: u32,
    /// What may be changed while guests run.
    pub settings: SettingsView,
    /// How short memory is: high, soft, hard or low; none before the first round.
    pub state: Option<String>,
    /// Budget not used, negative by how much it is exceeded; none before the first round.
    pub free_bytes: Option<i64>,
    /// Kept free for sharing to come apart.
    pub reserve_bytes: u64,
    /// Free memory that the manager aims for, the reserve not counted.
    pub goal_bytes: u64,
    /// What the budget is spent on.
    pub spent: SpentView,
    /// Guests admitted.
    pub guests: u64,
    /// Their configured sizes together.
    pub promised_bytes: u64,
    /// Their guaranteed minimums together.
    pub minimums_bytes: u64,
    /// Sharing domains by name.
    pub domains: BTreeMap<String, DomainView>,
    /// Groups by name.
    pub groups: BTreeMap<String, GroupView>,
    /// What happened at the sockets of guests' processes.
    pub doors: ConnectionsView,
    /// The manager's rounds.
    #[serde(default)]
    pub rounds: RoundsView,
    /// Why what is set and promised now would be lost if this manager ended; none where it would not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unkept: Option<String>,
    /// Guests whose processes hold more than their limits and come no closer to them.
    #[serde(default)]
    pub above_limits: Vec<AboveLimitView>,
    /// Guests that wait for memory and get none.
    #[serde(default)]
    pub waiting_for_memory: Vec<WaitingView>,
    /// CPU that the manager's process has used, microseconds.
    pub cpu_us: u64,
}

/// A guest whose process holds more than its limit and has come no closer to it for two seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AboveLimitView {
    /// Its name.
    pub guest: String,
    /// Private memory and page tables of its process.
    pub held_bytes: u64,
    /// The limit that it was told last, `held_bytes` compared.
    pub limit_bytes: u64,
    /// Why: `swap full`, `not connected`, or `gives up no more`, where its process says no more than that.
    pub reason: String,
}

/// A guest whose accesses wait for memory, none of which has got any for three seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WaitingView {
    /// Its name.
    pub guest: String,
    /// Private memory and page tables of its process.
    pub held_bytes: u64,
    /// The limit that it was told last, `held_bytes` compared.
    pub limit_bytes: u64,
    /// How long it has waited.
    pub waited_seconds: f64,
    /// Why: `swap full` or `no memory is free`.
    pub reason: String,
}

/// A group of guests that claims memory as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// Memory that its members always get together.
    pub min_bytes: u64,
    /// Memory that they never exceed together; without it there is no limit.
    pub max_bytes: Option<u64>,
    /// Its right to memory relative to other groups and guests.
    pub shares: u32,
    /// Its members.
    pub guests: Vec<String>,
    /// Private memory and page tables of its members' processes.
    pub held_bytes: u64,
    /// In the answer to a change: why it would be lost if this manager ended; none where it would not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unkept: Option<String>,
}

/// What happened at the sockets of guests' processes since the manager began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionsView {
    /// Reports taken in.
    pub reports: u64,
    /// Reports dropped because they cannot be true: more pages than their guest has.
    #[serde(default)]
    pub impossible: u64,
    /// Guests that were not admitted.
    pub refused: u64,
    /// Connections cut off because the process at the other end broke the protocol, flooded or did not read.
    pub cut_offs: u64,
    /// Connections turned away because their process had too many.
    pub crowded: u64,
    /// Connections not served because the system refused a descriptor, a thread or memory; their processes come again.
    #[serde(default)]
    pub starved: u64,
    /// Requests at the API by guests' processes, which were refused: a guest may have taken its process over. Of those that
    /// were never finished, not all of a flood are counted.
    #[serde(default)]
    pub intruders: u64,
    /// Microseconds from a report's sending to the policy's knowing it: half of the latest reports took no longer.
    pub handling_p50_us: u64,
    /// The same for 99 of 100.
    pub handling_p99_us: u64,
    /// The longest.
    pub handling_max_us: u64,
}

/// The manager's rounds: how often it plans and hands limits out, and what that takes. About the latest 120 of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundsView {
    /// Rounds since the manager began.
    pub count: u64,
    /// Microseconds from the begin of one to the begin of the next: half of them came no later.
    pub gap_p50_us: u64,
    /// The same for 99 of 100.
    pub gap_p99_us: u64,
    /// The longest.
    pub gap_max_us: u64,
    /// Microseconds that a round took: half of them took no longer.
    pub work_p50_us: u64,
    /// The longest.
    pub work_max_us: u64,
}

/// The settings of a manager.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SettingsView {
    /// Memory for everything.
    pub budget_bytes: u64,
    /// The idle-memory tax, 0 to below 100.
    pub tax_percent: f64,
    /// Longest time between two plans.
    pub rebalance_seconds: f64,
}

/// What a budget is spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpentView {
    /// Private memory and page tables of the guests' processes.
    pub guests_bytes: u64,
    /// Pools of common copies, each page once, those of managers before this one included.
    pub pools_bytes: u64,
    /// Of that, pools of managers before this one, which guests have not let go of yet.
    pub old_pools_bytes: u64,
    /// The manager's own process.
    pub manager_bytes: u64,
}

/// One sharing domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainView {
    /// Guests attached.
    pub guests: u32,
    /// Common copies, each once.
    pub pool_pages: u32,
    /// References to them.
    pub references: u64,
    /// Pages that are hints.
    pub hints: u64,
    /// What the manager keeps for the domain besides the pool.
    pub metadata_bytes: u64,
    /// Pages reported by guests since the domain began.
    pub reports: u64,
    /// Reports answered with a common copy.
    pub answered_shared: u64,
    /// Pages that entered the pool.
    pub published: u64,
    /// Publications refused: no room, or bytes that were not what their hash said.
    pub refused: u64,
    /// Calls that named something impossible: a broken or hostile process.
    pub invalid_calls: u64,
    /// Common copies given back to the kernel.
    pub punched: u64,
}

/// `GET /guests`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestList {
    /// In the order of admission.
    pub guests: Vec<GuestView>,
}

/// `GET /guests/{name}`: one guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestView {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// What the manager last had it do.
    pub phase: Phase,
    /// The version of the protocol that it speaks with the manager.
    #[serde(default)]
    pub protocol: u32,
    /// Whether its connection stands. A guest that is cut off runs on, and comes back by itself.
    pub connected: bool,
    /// Seconds since it was admitted.
    pub age_seconds: f64,
    /// Seconds since its last report.
    pub report_age_seconds: f64,
    /// Unix socket on which its process takes requests.
    pub control: Option<String>,
    /// Its sharing domain.
    pub domain: Option<String>,
    /// The group that it claims memory with.
    pub group: Option<String>,
    /// The fleet file that it was started from.
    pub fleet: Option<String>,
    /// What was promised to it.
    pub limits: LimitsView,
    /// Where its pages are, by its process's own account.
    pub memory: MemoryView,
    /// Private memory and page tables of its process, by the kernel's count: what it costs the budget.
    pub held_bytes: u64,
    /// Of that, what is neither the guest's private pages nor its compressed ones.
    pub overhead_bytes: u64,
    /// What it should hold; none before it was planned for.
    pub target: Option<TargetView>,
    /// What it uses.
    pub activity: ActivityView,
    /// Its balloon, where it has one.
    pub balloon: Option<BalloonView>,
    /// What its process may hold by all that it was told, `held_bytes` compared; none before it was told.
    #[serde(default)]
    pub limit_bytes: Option<u64>,
    /// Pages it may still grow by, where growth is gated.
    pub growth_credit_pages: Option<u64>,
    /// What was counted since it started.
    pub counters: CountersView,
    /// In the answer to a change: why it would be lost if this manager ended; none where it would not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unkept: Option<String>,
}

/// What a guest's virtual CPUs do: what they were last told by the manager, or what its process reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing, or to go on.
    #[default]
    Running,
    /// To stand still.
    Paused,
    /// To end.
    Stopping,
}

impl Phase {
    /// The name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
        }
    }
}

/// What was promised to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsView {
    /// Memory it always gets.
    pub min_bytes: u64,
    /// Its configured size.
    pub max_bytes: u64,
    /// Its right to memory relative to the others.
    pub shares: u32,
}

/// A guest's memory by state; without `store_bytes` it adds up to the guest's size once the guest has reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryView {
    /// Memory of its own.
    pub private_bytes: u64,
    /// Backed by a common copy.
    pub shared_bytes: u64,
    /// The kernel's zero page. None while the guest's growth is gated: pages of zeros are given up then, and counted as
    /// empty.
    pub zero_bytes: u64,
    /// Compressed, counted as before compression.
    pub compressed_bytes: u64,
    /// What the compressed pages occupy.
    pub store_bytes: u64,
    /// In the swap file.
    pub swapped_bytes: u64,
    /// In the balloon.
    pub ballooned_bytes: u64,
    /// Never touched, or given up: by the guest, or, while its growth is gated, because there were only zeros in them.
    pub empty_bytes: u64,
}

/// What a guest should hold, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetView {
    /// Private memory it should hold.
    pub private_bytes: u64,
    /// That and what it shares.
    pub size_bytes: u64,
    /// Of the private memory, what is idle and taxed.
    pub taxed_bytes: u64,
    /// What decided: maximum, minimum, shares or tax.
    pub bound: String,
    /// The same in a sentence.
    pub explanation: String,
}

/// What a guest is believed to use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ActivityView {
    /// Part of its private memory, 0 to 1; 1 where nothing was measured yet.
    pub fraction: f64,
    /// The 95 % confidence interval of what was sampled.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// `fraction` in bytes.
    pub active_bytes: u64,
    /// Memory written per second, from the last scan.
    pub written_bytes_per_second: u64,
}

/// A guest's balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonView {
    /// The balloon's size that the manager asks for.
    pub asked_bytes: u64,
    /// The balloon's size that the guest was asked for.
    pub target_bytes: u64,
    /// The balloon's size as the device sees it.
    pub actual_bytes: u64,
    /// Whether the guest's driver is there.
    pub responsive: bool,
}

/// Counters of one guest; they only grow while its process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersView {
    /// Common copies that it wrote to.
    pub cow_breaks: u64,
    /// Pages brought back from compression and swap.
    pub pages_in: u64,
    /// CPU used by its memory engine, microseconds.
    pub engine_cpu_us: u64,
    /// How often its process was cut off for breaking the protocol.
    pub cut_offs: u32,
}

/// `GET /guests/{name}/balloon/statistics`: flat, with Firecracker's names. The guest's own statistics stand next to
/// the device's figures under their names there (`free_memory`, `major_faults`, ...), bytes or counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BalloonStatistics {
    /// The balloon's size asked for, pages of 4 KiB.
    pub target_pages: u64,
    /// The balloon's size, pages of 4 KiB.
    pub actual_pages: u64,
    /// The balloon's size asked for, MiB.
    pub target_mib: u64,
    /// The balloon's size, MiB.
    pub actual_mib: u64,
    /// Milliseconds since the guest sent its statistics; none where it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// What the guest says of itself.
    #[serde(flatten)]
    pub guest: BTreeMap<String, u64>,
}

/// `PUT /host`: what is left out stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostChange {
    /// Memory for everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_bytes: Option<u64>,
    /// The idle-memory tax, 0 to below 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tax_percent: Option<f64>,
    /// Longest time between two plans, 0.1 to 86400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebalance_seconds: Option<f64>,
}

/// `PATCH /guests/{name}`: what is left out stays as it is. A guest's maximum is its size and cannot be changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestChange {
    /// Memory it always gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_bytes: Option<u64>,
    /// Its right to memory relative to the others, above 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<u32>,
}

/// `POST /guests/{name}/stop`, where a body is not needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopOrder {
    /// Milliseconds that the guest may take to switch itself off before its process ends it; 10,000 where that is left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// Kill the guest's process at once, whatever it does and whether or not it is connected.
    #[serde(default)]
    pub force: bool,
}

/// `PATCH /groups/{name}`: what is left out stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupChange {
    /// Memory that its members always get together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_bytes: Option<u64>,
    /// Memory that they never exceed together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Its right to memory relative to other groups and guests, above 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<u32>,
}

/// The body of every answer whose status is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What is wrong and what to do about it.
    pub error: String,
}
