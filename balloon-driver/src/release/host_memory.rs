//! Where each guest frame lies in this process.

use std::ops::Range;
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, FileOffset, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::{UnsuitableMemory, syscalls};
use crate::frame::{FRAME_SIZE, Frame, Run};

/// Guest memory mapped into this process, kept mapped for as long as this value lives.
pub(super) struct HostMemory {
    regions: Vec<Region>,
    /// Holds the mappings that `regions` point into.
    _memory: Box<dyn Send + Sync>,
}

/// One mapping of guest memory.
pub(super) struct Region {
    pub(super) frames: Run,
    /// Address of the first frame in this process.
    host: usize,
    pub(super) file: Option<FileOffset>,
    /// The `flags` of its mmap.
    pub(super) flags: i32,
}

impl HostMemory {
    /// The memory of a guest, whose regions must be made of whole pages of `page` bytes.
    pub(super) fn new<B>(memory: Arc<GuestMemoryMmap<B>>, page: u64) -> Result<Self, UnsuitableMemory>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let host_page = syscalls::page_size();
        if host_page != FRAME_SIZE {
            return Err(UnsuitableMemory::PageSize(host_page));
        }
        let mut regions = Vec::new();
        for region in memory.iter() {
            let (address, len, host) = (
                region.start_addr().raw_value(),
                region.len(),
                region.as_ptr() as usize,
            );
            let whole = |value: u64| value.is_multiple_of(page);
            let frames = Run::within(address, len)
                .filter(|_| whole(address) && whole(len) && whole(host as u64))
                .ok_or(UnsuitableMemory::Unaligned {
                    address,
                    len,
                    unit: page,
                })?;
            regions.push(Region {
                frames,
                host,
                file: region.file_offset().cloned(),
                flags: region.flags(),
            });
        }
        regions.sort_by_key(|region| region.frames);
        Ok(Self {
            regions,
            _memory: Box::new(memory),
        })
    }

    pub(super) fn regions(&self) -> &[Region] {
        &self.regions
    }

    pub(super) fn backed(&self) -> Vec<Run> {
        self.regions.iter().map(|region| region.frames).collect()
    }

    /// The pieces of `run`, one per region it lies in.
    pub(super) fn pieces(&self, run: Run) -> impl Iterator<Item = (&Region, Run)> {
        let from = self
            .regions
            .partition_point(|region| region.frames.end() <= run.first());
        self.regions[from..]
            .iter()
            .map_while(move |region| Some((region, run.overlap(region.frames)?)))
    }
}

impl Region {
    /// Where the frames of `run`, which must lie in this region, are in this process.
    pub(super) fn host_range(&self, run: Run) -> Range<usize> {
        let at = |frame: Frame| {
            self.host + ((frame.number() - self.frames.first().number()) * FRAME_SIZE) as usize
        };
        at(run.first())..at(run.end())
    }

    /// Where the frames of `run` are in the region's file: offset and length in bytes.
    pub(super) fn file_range(&self, run: Run) -> Option<(&FileOffset, u64, u64)> {
        let file = self.file.as_ref()?;
        let offset = file.start() + (run.first().number() - self.frames.first().number()) * FRAME_SIZE;
        Some((file, offset, run.count() * FRAME_SIZE))
    }

    pub(super) fn address(&self) -> u64 {
        self.frames.first().address().unwrap_or(u64::MAX)
    }
}
