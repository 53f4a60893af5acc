//! Swaps a guest's pages out, and tells people where that does not work: once, not for every attempt, of which a full
//! disk sees hundreds a second.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use page_share::{PageRun, Region};

/// Shortest time between two complaints.
const SAY: Duration = Duration::from_secs(60);

/// The way of one guest's pages into its swap file.
#[derive(Debug)]
pub(super) struct Swapper {
    region: Arc<Region>,
    /// When people were last told that it failed.
    said: Mutex<Option<Instant>>,
}

impl Swapper {
    pub(super) fn new(region: Arc<Region>) -> Self {
        Self {
            region,
            said: Mutex::new(None),
        }
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Swaps out what is private of `run`: the number of pages that left memory; `None` where it failed.
    pub(super) fn swap_out(&self, run: PageRun) -> Option<u32> {
        self.region
            .swap_out(run)
            .inspect_err(|error| {
                let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
                if said.is_none_or(|when| when.elapsed() >= SAY) {
                    *said = Some(Instant::now());
                    log::warn!("pages stay in memory: {}", levy_protocol::error_chain(error));
                }
            })
            .ok()
    }
}
