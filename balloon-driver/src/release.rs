//! What "the guest does not need these frames" means for the memory behind them: the port and its
//! implementations.

mod anonymous;
mod host_memory;
mod hugetlb;
mod memfd;
mod syscalls;

use std::io;

pub use anonymous::Anonymous;
pub use hugetlb::Hugetlb;
pub use memfd::Memfd;

use crate::frame::Run;

/// Why frames are released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// They entered the balloon: the guest will not touch them before it deflates.
    Inflated,
    /// They were reported free: the guest may touch them as soon as the buffer is returned.
    Reported,
}

/// What became of a release.
#[derive(Debug, Default)]
pub struct Released {
    /// How many frames went back to the host.
    pub frames: u64,
    /// How many did not.
    pub failed: u64,
    /// Why the last of those did not.
    pub error: Option<io::Error>,
}

/// Guest memory that can give frames back to its host.
///
/// The device asks for frames only out of [`backed`](Self::backed), in runs that are sorted, disjoint and made of
/// whole [`unit`](Self::unit)s. Whatever a release does, two things must hold when it returns:
///
/// 1. the guest may access a released frame at any time and reads **zeros** in it, or what it wrote since;
/// 2. nothing outside the runs changed.
///
/// Memory that is more than plain pages must take the frame through its own states first: a copy-on-write page of
/// a shared pool must be replaced by anonymous memory, or `MADV_DONTNEED` brings the pool's bytes back; a
/// compressed or swapped copy must be dropped.
pub trait Release: Send {
    /// The guest frames this memory backs.
    fn backed(&self) -> Vec<Run>;

    /// The smallest number of frames, aligned to itself, that can be released: 1 for 4 KiB pages, 512 for 2 MiB
    /// pages of hugetlbfs. Transparent huge pages split, so they count as 4 KiB pages.
    fn unit(&self) -> u64 {
        1
    }

    /// Gives the memory behind `runs` back to the host.
    fn release(&mut self, runs: &[Run], reason: Reason) -> Released;

    /// The guest takes `runs` back out of the balloon. Memory that keeps a state per frame changes it here; plain
    /// memory has nothing to do, the next access gets a zeroed page.
    fn take_back(&mut self, runs: &[Run]) {
        let _ = runs;
    }
}

impl<R: Release + ?Sized> Release for Box<R> {
    fn backed(&self) -> Vec<Run> {
        (**self).backed()
    }

    fn unit(&self) -> u64 {
        (**self).unit()
    }

    fn release(&mut self, runs: &[Run], reason: Reason) -> Released {
        (**self).release(runs, reason)
    }

    fn take_back(&mut self, runs: &[Run]) {
        (**self).take_back(runs);
    }
}

/// Memory that this port cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnsuitableMemory {
    /// The host's page size is not the balloon's.
    #[error("the host's pages have {0} bytes; only hosts with 4096-byte pages are supported")]
    PageSize(u64),
    /// A region does not consist of whole units.
    #[error(
        "the memory region at {address:#x} of {len:#x} bytes is not made of whole {unit}-byte pages; align it"
    )]
    Unaligned {
        /// Guest-physical address of the region.
        address: u64,
        /// Its length in bytes.
        len: u64,
        /// The page size it must be made of.
        unit: u64,
    },
    /// A region is of another kind than the port asked for.
    #[error("the memory region at {address:#x} is {found}, but this port releases {wanted}")]
    Kind {
        /// Guest-physical address of the region.
        address: u64,
        /// What the region is.
        found: &'static str,
        /// What it would have to be.
        wanted: &'static str,
    },
}
