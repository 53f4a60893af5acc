//! A guest's memory, as the VMM that owns it hands it over.

use std::fmt;
use std::sync::{Arc, Mutex};

use page_share::{AdoptError, MemoryRange, Options, Region};

use super::{SharedReadBlocks, lock};

/// Memory that a VMM owns and has managed.
pub trait Memory: fmt::Debug + Send + Sync {
    /// Its size, bytes of RAM; holes in the guest's address space are not counted.
    fn bytes(&self) -> u64;

    /// Puts all of it under a region with `options`. From then on only the region may drop pages of it.
    ///
    /// # Errors
    /// See [`AdoptError`].
    fn adopt(&self, options: Options) -> Result<Arc<Region>, AdoptError>;

    /// Pages that probably equal other guests' and are not under management yet.
    fn shared_read_blocks(&self) -> &SharedReadBlocks;
}

/// Memory of a VMM that has mapped it itself and drops no page of it any more once it is adopted.
#[derive(Debug)]
pub struct PlainMemory {
    bytes: u64,
    ranges: Mutex<Vec<MemoryRange>>,
    shared_read_blocks: SharedReadBlocks,
}

impl PlainMemory {
    /// The memory in `ranges`. A page's guest address and its address in this process must be the same distance away from
    /// a multiple of 2 MiB, as the kernel's huge pages are.
    pub fn new(ranges: Vec<MemoryRange>) -> Self {
        Self {
            bytes: ranges
                .iter()
                .map(|range| u64::from(range.run().count) * 4096)
                .sum(),
            ranges: Mutex::new(ranges),
            shared_read_blocks: SharedReadBlocks::default(),
        }
    }
}

impl Memory for PlainMemory {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn adopt(&self, options: Options) -> Result<Arc<Region>, AdoptError> {
        let ranges = std::mem::take(&mut *lock(&self.ranges));
        Region::adopt(ranges, options).map(Arc::new)
    }

    fn shared_read_blocks(&self) -> &SharedReadBlocks {
        &self.shared_read_blocks
    }
}
