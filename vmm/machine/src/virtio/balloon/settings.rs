//! What a balloon is made with.

use std::time::Duration;

/// `--balloon size=64M,deflate_on_oom=on,free_page_reporting=on,stats_polling_interval=1s`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonConfig {
    /// Bytes that the guest is asked to give up from the start.
    pub bytes: u64,
    /// Whether the guest takes memory back rather than kill a process.
    pub deflate_on_oom: bool,
    /// Whether the guest reports free memory by itself.
    pub free_page_reporting: bool,
    /// How often the guest is asked for its figures; zero is never.
    pub stats_polling_interval: Duration,
}

impl Default for BalloonConfig {
    /// An empty balloon that the guest may always deflate rather than kill a process, with reporting and figures every
    /// second.
    fn default() -> Self {
        Self {
            bytes: 0,
            deflate_on_oom: true,
            free_page_reporting: true,
            stats_polling_interval: Duration::from_secs(1),
        }
    }
}
