//! hugetlbfs memory: whole huge pages or nothing.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::Bitmap;

use super::host_memory::HostMemory;
use super::memfd::{punch, require_shared_file};
use super::{Reason, Release, Released, UnsuitableMemory};
use crate::frame::{FRAME_SIZE, Run};

/// Guest memory made of shared mappings of a hugetlbfs file or a `MFD_HUGETLB` memfd.
///
/// The guest inflates 4 KiB frames, the host can only free whole huge pages: a huge page is released when the last
/// of its frames enters the balloon, or when it is reported free as a whole.
pub struct Hugetlb {
    memory: HostMemory,
    unit: u64,
}

impl Hugetlb {
    /// The memory of a guest, made of huge pages of `page` bytes; it stays mapped for as long as this value lives.
    ///
    /// # Errors
    /// When a region is not a shared mapping of a file, or is not made of whole huge pages.
    pub fn new<B>(memory: Arc<GuestMemoryMmap<B>>, page: u64) -> Result<Self, UnsuitableMemory>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let memory = HostMemory::new(memory, page.max(FRAME_SIZE))?;
        require_shared_file(&memory)?;
        Ok(Self {
            memory,
            unit: (page / FRAME_SIZE).max(1),
        })
    }
}

impl Release for Hugetlb {
    fn backed(&self) -> Vec<Run> {
        self.memory.backed()
    }

    fn unit(&self) -> u64 {
        self.unit
    }

    fn release(&mut self, runs: &[Run], _: Reason) -> Released {
        punch(&self.memory, runs)
    }
}
