//! What the device has seen and done, as plain numbers.

/// Every count since the device was made; nothing resets them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Buffers taken from the inflate queue.
    pub inflate_buffers: u64,
    /// Buffers taken from the deflate queue.
    pub deflate_buffers: u64,
    /// Buffers taken from the statistics queue.
    pub statistics_buffers: u64,
    /// Buffers taken from the hinting queue.
    pub hint_buffers: u64,
    /// Buffers taken from the reporting queue.
    pub report_buffers: u64,
    /// Frames that entered the balloon.
    pub inflated: u64,
    /// Frames inflated that were in the balloon already; they are released once more.
    pub already_inflated: u64,
    /// Frames named more than once before the device looked; they count once.
    pub repeated: u64,
    /// Frames named that are not memory of this guest; ignored.
    pub foreign: u64,
    /// Frames that left the balloon.
    pub deflated: u64,
    /// Frames deflated that were not in the balloon; ignored.
    pub never_inflated: u64,
    /// Frames that left the balloon because the device was reset: the balloon popped.
    pub popped: u64,
    /// Frames reported free.
    pub reported: u64,
    /// Frames hinted free.
    pub hinted: u64,
    /// Hints of a round that is not the current one; ignored.
    pub stale_hints: u64,
    /// Frames reported free and kept, because the guest expects its poison value in them.
    pub kept_for_poison: u64,
    /// Frames not released because they do not fill the smallest unit the memory can release.
    pub kept_for_unit: u64,
    /// Runs handed to the memory for release.
    pub released_runs: u64,
    /// Frames the memory gave back to the host.
    pub released: u64,
    /// Frames the memory could not give back.
    pub release_failed: u64,
    /// Statistics with a tag this device does not know; ignored.
    pub unknown_statistics: u64,
    /// Chains that loop, lead nowhere, have the wrong direction or hold half a number; returned unread.
    pub malformed_chains: u64,
    /// Buffers longer than the device reads; the rest of each is ignored.
    pub oversized_buffers: u64,
    /// Bytes the guest wrote to configuration fields that are not its own; ignored.
    pub refused_config_bytes: u64,
    /// Rings so broken that the device stopped until its next reset.
    pub broken_rings: u64,
    /// Queue events that came while the device was not working; ignored.
    pub ignored_events: u64,
    /// Resets by the driver.
    pub resets: u64,
}
