//! Feature bits, and which queue has which number once they are negotiated.

/// The device's type in virtio's device list.
pub const DEVICE_ID: u32 = 5;

/// `VIRTIO_BALLOON_F_STATS_VQ`: the guest answers requests for memory statistics.
pub const STATISTICS: u64 = 1 << 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`: the guest may take pages back before it kills a process.
pub const DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_FREE_PAGE_HINT`: the guest lists its free pages on request, for migration.
pub const FREE_PAGE_HINT: u64 = 1 << 3;
/// `VIRTIO_BALLOON_F_PAGE_POISON`: the guest says what its free pages are filled with.
pub const PAGE_POISON: u64 = 1 << 4;
/// `VIRTIO_BALLOON_F_REPORTING`: the guest reports free pages as they become free.
pub const REPORTING: u64 = 1 << 5;
/// `VIRTIO_F_INDIRECT_DESC`: a driver may put a chain of buffers into a table of its own, for one descriptor of the ring.
/// The device always offers it and follows such tables, one level deep. Linux's balloon driver never takes it: it clears
/// this bit, so that it can report free pages without allocating.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
pub const EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`: without it a driver would expect the legacy interface, which this device is not.
pub const VERSION_1: u64 = 1 << 32;

/// What one of the balloon's queues is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueueKind {
    /// Pages the guest gives to the host.
    Inflate,
    /// Pages the guest takes back.
    Deflate,
    /// Memory statistics; the device holds the one buffer until it wants fresh numbers.
    Statistics,
    /// Free pages listed on request, for migration.
    Hinting,
    /// Free pages reported without a request.
    Reporting,
}

/// The queues of a device with `features`, in the order of their numbers.
///
/// The specification gives each queue a fixed number. Linux, the driver in common use, numbers only the
/// queues whose feature was negotiated: with statistics and reporting but no hinting, reporting is queue 3, not 4.
/// So the position in this list is the queue's number.
pub fn queues(features: u64) -> impl Iterator<Item = QueueKind> {
    [
        (QueueKind::Inflate, 0),
        (QueueKind::Deflate, 0),
        (QueueKind::Statistics, STATISTICS),
        (QueueKind::Hinting, FREE_PAGE_HINT),
        (QueueKind::Reporting, REPORTING),
    ]
    .into_iter()
    .filter(move |(_, needs)| features & needs == *needs)
    .map(|(kind, _)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compacted_as_linux_does_for_every_set_of_features() {
        for bits in 0..8u64 {
            let of = |bit: u64, feature: u64| if bits & bit == 0 { 0 } else { feature };
            let features = of(1, STATISTICS) | of(2, FREE_PAGE_HINT) | of(4, REPORTING) | VERSION_1;
            let kinds: Vec<QueueKind> = queues(features).collect();
            assert_eq!(kinds[..2], [QueueKind::Inflate, QueueKind::Deflate]);
            // Linux: `queue_idx++` for each queue that has a name, in the order of its enum.
            let mut number = 2;
            for (bit, kind) in [
                (1, QueueKind::Statistics),
                (2, QueueKind::Hinting),
                (4, QueueKind::Reporting),
            ] {
                let expected = (bits & bit != 0).then(|| {
                    number += 1;
                    number - 1
                });
                assert_eq!(
                    kinds.iter().position(|&have| have == kind),
                    expected,
                    "{kind:?} in {features:#x}"
                );
            }
            assert_eq!(kinds.len(), number);
        }
    }
}
