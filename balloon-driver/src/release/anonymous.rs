//! Private anonymous memory: `MADV_DONTNEED`.
#![allow(unsafe_code)]
// UNSAFETY: releasing pages takes their contents away from any code that looks at them; this file is where the argument
// is made that no code does.

use std::ops::Range;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::Bitmap;

use super::host_memory::HostMemory;
use super::syscalls::Dropper;
use super::{Reason, Release, Released, UnsuitableMemory};
use crate::frame::{FRAME_SIZE, Run};

/// Guest memory made of private anonymous mappings.
///
/// One system call for each 1024 runs on Linux 6.13 and later, one per run before. A system call filter must allow
/// `madvise`, and should allow `process_madvise`; `pidfd_open` is needed only while this is made.
pub struct Anonymous {
    memory: HostMemory,
    dropper: Dropper,
    ranges: Vec<Range<usize>>,
}

impl Anonymous {
    /// The memory of a guest; it stays mapped for as long as this value lives.
    ///
    /// # Errors
    /// When a region is mapped from a file (on a private file mapping `MADV_DONTNEED` brings the file's bytes back
    /// instead of zeros), is shared or made of hugetlb pages, or is not page aligned.
    pub fn new<B>(memory: Arc<GuestMemoryMmap<B>>) -> Result<Self, UnsuitableMemory>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let memory = HostMemory::new(memory, FRAME_SIZE)?;
        for region in memory.regions() {
            let found = match () {
                () if region.file.is_some() => "mapped from a file",
                () if region.flags & libc::MAP_SHARED != 0 => "shared memory",
                () if region.flags & libc::MAP_HUGETLB != 0 => "made of hugetlb pages",
                () => continue,
            };
            let (address, wanted) = (region.address(), "private anonymous memory");
            return Err(UnsuitableMemory::Kind {
                address,
                found,
                wanted,
            });
        }
        Ok(Self {
            memory,
            dropper: Dropper::new(),
            ranges: Vec::new(),
        })
    }

    /// Makes one `madvise` per run and never calls `process_madvise`, as on kernels before 6.13: for a system call
    /// filter that kills on it.
    pub fn without_vectored_calls(mut self) -> Self {
        self.dropper = Dropper::single();
        self
    }
}

impl Release for Anonymous {
    fn backed(&self) -> Vec<Run> {
        self.memory.backed()
    }

    fn release(&mut self, runs: &[Run], _: Reason) -> Released {
        self.ranges.clear();
        for &run in runs {
            self.ranges.extend(
                self.memory
                    .pieces(run)
                    .map(|(region, piece)| region.host_range(piece)),
            );
        }
        let bytes: usize = self.ranges.iter().map(ExactSizeIterator::len).sum();
        let mut released = Released::default();
        // SAFETY: the ranges come from `pieces`, so they lie in guest memory, which is private, anonymous (checked in
        // `new`), page aligned and mapped while `self.memory` lives. Guest memory is only ever accessed through
        // volatile or atomic copies, never through references: the guest may change it at any time anyway.
        unsafe {
            self.dropper.drop_ranges(&self.ranges, |range, error| {
                released.failed += range.len() as u64 / FRAME_SIZE;
                released.error = Some(error);
            });
        }
        released.frames = bytes as u64 / FRAME_SIZE - released.failed;
        released
    }
}
