//! What a region is asked to be.

use crate::swap::Swap;

/// How the region's blocks of 2 MiB start out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Blocks {
    /// Managed in small pages from the start: they can be shared, sampled and swapped.
    #[default]
    Managed,
    /// Left to the kernel as huge pages until [`Region::split_blocks`](crate::Region::split_blocks): best while memory is plentiful.
    Huge,
}

/// What a region is made with: the default, and what the methods change of it.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// How blocks start out.
    pub blocks: Blocks,
    /// Most bytes of memory for compressed pages; 0 means that nothing can be compressed.
    pub store_bytes: usize,
    /// Where swapped pages go; without it nothing can be swapped.
    pub swap: Option<Swap>,
    /// Called first thing on each thread that the region starts, for instance to confine it.
    pub thread_started: ThreadStarted,
}

impl Options {
    /// These options with blocks that start out as `blocks`.
    #[must_use]
    pub fn with_blocks(self, blocks: Blocks) -> Self {
        Self { blocks, ..self }
    }

    /// These options with at most `bytes` bytes of memory for compressed pages.
    #[must_use]
    pub fn with_store_bytes(self, bytes: usize) -> Self {
        Self {
            store_bytes: bytes,
            ..self
        }
    }

    /// These options with a file for swapped pages, or with none.
    #[must_use]
    pub fn with_swap(self, swap: impl Into<Option<Swap>>) -> Self {
        Self {
            swap: swap.into(),
            ..self
        }
    }

    /// These options with what is called first on each thread of the region.
    #[must_use]
    pub fn with_thread_started(self, started: ThreadStarted) -> Self {
        Self {
            thread_started: started,
            ..self
        }
    }
}

/// A region's threads, by what they do. Every thread is here, so that a match that confines each of them notices when
/// there is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RegionThread {
    /// Resolves faults; never allocates, never waits for another thread.
    FaultHandler,
    /// Reads swapped pages that were touched.
    SwapIns,
    /// Scans, merges and talks to the manager ([`crate::ScanThread`]).
    Scanner,
}

/// What to call when a thread starts, if anything.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThreadStarted(pub Option<fn(RegionThread)>);

impl ThreadStarted {
    pub(crate) fn tell(self, thread: RegionThread) {
        if let Some(call) = self.0 {
            call(thread);
        }
    }
}
