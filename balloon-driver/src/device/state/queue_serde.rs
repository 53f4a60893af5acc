//! How queues are written and read: virtio-queue leaves that to its users.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use virtio_queue::QueueState;

/// The fields of [`QueueState`].
#[derive(Serialize, Deserialize)]
#[serde(remote = "QueueState")]
struct Fields {
    max_size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

/// One queue as `Fields` writes it.
#[derive(Serialize, Deserialize)]
struct Saved(#[serde(with = "Fields")] QueueState);

pub(super) fn serialize<S: Serializer>(queues: &[QueueState], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(queues.iter().map(|queue| Saved(*queue)))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<QueueState>, D::Error> {
    let saved = Vec::<Saved>::deserialize(deserializer)?;
    Ok(saved.into_iter().map(|Saved(queue)| queue).collect())
}
