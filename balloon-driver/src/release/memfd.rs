//! Shared file-backed memory: punch holes into the file.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::Bitmap;

use super::host_memory::HostMemory;
use super::syscalls::punch_hole;
use super::{Reason, Release, Released, UnsuitableMemory};
use crate::frame::{FRAME_SIZE, Run};

/// Guest memory made of shared mappings of a memfd or a tmpfs file.
///
/// `MADV_DONTNEED` frees nothing there: the page stays in the file. The file gets holes instead, which also takes
/// the pages out of every other process that maps it.
pub struct Memfd {
    memory: HostMemory,
}

impl Memfd {
    /// The memory of a guest; it stays mapped for as long as this value lives.
    ///
    /// # Errors
    /// When a region is not a shared mapping of a file, or is not page aligned.
    pub fn new<B>(memory: Arc<GuestMemoryMmap<B>>) -> Result<Self, UnsuitableMemory>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let memory = HostMemory::new(memory, FRAME_SIZE)?;
        require_shared_file(&memory)?;
        Ok(Self { memory })
    }
}

impl Release for Memfd {
    fn backed(&self) -> Vec<Run> {
        self.memory.backed()
    }

    fn release(&mut self, runs: &[Run], _: Reason) -> Released {
        punch(&self.memory, runs)
    }
}

pub(super) fn require_shared_file(memory: &HostMemory) -> Result<(), UnsuitableMemory> {
    for region in memory.regions() {
        let found = match () {
            () if region.file.is_none() => "not mapped from a file",
            // A hole in the file leaves the private copies where they are.
            () if region.flags & libc::MAP_SHARED == 0 => "a private mapping of a file",
            () => continue,
        };
        let (address, wanted) = (region.address(), "shared mappings of a file");
        return Err(UnsuitableMemory::Kind {
            address,
            found,
            wanted,
        });
    }
    Ok(())
}

pub(super) fn punch(memory: &HostMemory, runs: &[Run]) -> Released {
    let mut released = Released::default();
    let pieces = runs.iter().flat_map(|&run| memory.pieces(run));
    for (region, piece) in pieces {
        let Some((file, offset, len)) = region.file_range(piece) else {
            continue;
        };
        match punch_hole(file.file(), offset, len) {
            Ok(()) => released.frames += piece.count(),
            Err(error) => {
                released.failed += piece.count();
                released.error = Some(error);
            }
        }
    }
    released
}
