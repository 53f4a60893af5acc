//! Guest RAM: private anonymous memory, and the only place that maps it or gives its pages back.
//!
//! The mapping is `MADV_DONTFORK` (a fork would make every page copy-on-write) and `MADV_DONTDUMP` (guest bytes
//! never reach a core file). Code that manages pages sees guest frames and host addresses through [`RamRegion`];
//! code that reads or writes bytes goes through [`GuestRam::view`], which checks every address and length.
#![allow(unsafe_code)]
// UNSAFETY: madvise on the guest's mapping, which the kernel must not be asked for with a wrong range.

mod mapping;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use nix::sys::mman::{MmapAdvise, madvise};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use levy_member::{Memory, SharedReadBlocks};
use page_share::{AdoptError, Options, Region};

use crate::layout::{self, PAGE_SIZE};
use crate::lock::lock;
use mapping::Mapping;

/// A guest page frame number: a guest-physical address divided by 4096.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gfn(u64);

impl Gfn {
    /// The frame with number `number`.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The frame's number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The guest-physical address of the frame's first byte.
    pub const fn address(self) -> u64 {
        self.0 * PAGE_SIZE
    }
}

impl std::fmt::Debug for Gfn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "gfn {:#x}", self.0)
    }
}

/// A run of guest frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GfnRange {
    /// The first frame.
    pub start: Gfn,
    /// How many frames follow each other, the first included.
    pub pages: u64,
}

/// One contiguous piece of guest RAM.
#[derive(Clone, Copy, Debug)]
pub struct RamRegion {
    /// The guest frames it backs.
    pub frames: GfnRange,
    /// The address in this process of the first frame.
    pub host: usize,
}

/// The RAM of one guest.
#[derive(Debug)]
pub struct GuestRam {
    /// The region that manages the pages, once there is one: then only it may drop them. First, so that it ends before
    /// the mapping does.
    region: OnceLock<Arc<Region>>,
    /// Held while no region manages the pages and they change: by a thread that drops some, and while a region adopts
    /// them.
    unmanaged: Mutex<()>,
    view: GuestMemoryMmap,
    regions: Vec<RamRegion>,
    released: AtomicU64,
    shared_read_blocks: SharedReadBlocks,
    /// What `view` looks at, one for each of `regions`. Last: everything above uses it.
    mappings: Vec<Arc<Mapping>>,
}

/// Why guest RAM could not be set up or changed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum RamError {
    /// The size is zero or not whole pages.
    #[error("guest memory of {0} bytes is not a positive number of 4 KiB pages")]
    Size(u64),
    /// The host refused the mapping.
    #[error("cannot map {bytes} bytes of guest memory; free memory on the host or lower --memory size=")]
    Map {
        bytes: u64,
        #[source]
        source: io::Error,
    },
    /// A frame range that is not RAM of this guest.
    #[error("{range:?} is not inside the guest's memory")]
    NotRam { range: GfnRange },
    /// The kernel refused advice on the mapping.
    #[error("the host refused to change guest memory at {address:#x}")]
    Advice {
        address: usize,
        #[source]
        source: io::Error,
    },
}

impl GuestRam {
    /// Maps `bytes` of RAM, untouched: a page costs the host nothing before the guest writes it.
    ///
    /// # Errors
    /// When `bytes` is zero or no multiple of 4096, or when the host has no address space or credit for it.
    pub fn new(bytes: u64) -> Result<Self, RamError> {
        if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(RamError::Size(bytes));
        }
        let map_error = |source| RamError::Map {
            bytes,
            source: levy_protocol::no_memory(source),
        };
        let other = |e: &dyn std::fmt::Display| map_error(io::Error::other(e.to_string()));
        let (mut mappings, mut seen) = (Vec::new(), Vec::new());
        for (start, len) in layout::ram_ranges(bytes) {
            let mapping = Mapping::new(len as usize).map_err(map_error)?;
            let region = mapping.region().map_err(|e| other(&e))?;
            let region = GuestRegionMmap::new(region, GuestAddress(start)).ok_or(RamError::Size(bytes))?;
            mappings.push(mapping);
            seen.push(region);
        }
        let view = GuestMemoryMmap::from_regions(seen).map_err(|e| other(&e))?;
        let regions: Vec<_> = view.iter().map(describe).collect();
        for region in &regions {
            advise(region.host, region.frames.pages, MmapAdvise::MADV_DONTFORK)?;
            advise(region.host, region.frames.pages, MmapAdvise::MADV_DONTDUMP)?;
        }
        Ok(Self {
            view,
            regions,
            released: AtomicU64::new(0),
            shared_read_blocks: SharedReadBlocks::default(),
            region: OnceLock::new(),
            unmanaged: Mutex::new(()),
            mappings,
        })
    }

    /// The memory as an engine takes it over, for [`GuestRam::manage`]. It stays mapped for as long as these ranges, or
    /// a region that adopted them, are there. `None` where its frame numbers do not fit 32 bits.
    pub fn ranges(&self) -> Option<Vec<page_share::MemoryRange>> {
        let ranges = self.view.iter().map(page_share::MemoryRange::from_vm_memory);
        let kept = ranges
            .zip(&self.mappings)
            .map(|(range, mapping)| range.map(|range| range.kept_by(Arc::clone(mapping) as _)));
        kept.collect()
    }

    /// Has the kernel merge equal pages of this memory with those of others (KSM), wherever it is switched on. Not
    /// together with a manager of the pages.
    ///
    /// # Errors
    /// When the kernel has no such thing.
    pub fn merge_by_kernel(&self) -> Result<(), RamError> {
        for region in &self.regions {
            advise(region.host, region.frames.pages, MmapAdvise::MADV_MERGEABLE)?;
        }
        Ok(())
    }

    /// Asks the kernel for huge pages wherever a block of 2 MiB is touched from now on: loading a kernel then takes some
    /// dozen faults in place of thousands. A wish: a kernel built without huge pages refuses it, and the guest has
    /// small ones.
    pub fn prefer_huge_pages(&self) {
        for region in &self.regions {
            if let Err(RamError::Advice { source, .. }) =
                advise(region.host, region.frames.pages, MmapAdvise::MADV_HUGEPAGE)
            {
                log::debug!("no huge pages for guest memory: {source}");
            }
        }
    }

    /// The memory as rust-vmm devices see it: every access names a guest address and is checked.
    pub fn view(&self) -> &GuestMemoryMmap {
        &self.view
    }

    /// The pieces of RAM, in ascending order of frames.
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// The guest's memory size in bytes.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.frames.pages * PAGE_SIZE).sum()
    }

    /// Lets `adopt` put this memory under a region's management; from now on the region gives frames back. Frames that
    /// are released meanwhile wait for it.
    ///
    /// # Errors
    /// What `adopt` says; the memory is unmanaged then.
    ///
    /// # Panics
    /// When a region manages this memory already: two would tear pages out of each other's hands.
    pub fn manage<E>(&self, adopt: impl FnOnce() -> Result<Region, E>) -> Result<Arc<Region>, E> {
        let _still = lock(&self.unmanaged);
        assert!(self.region.get().is_none(), "guest memory has one manager");
        let region = adopt()?;
        Ok(Arc::clone(self.region.get_or_init(|| Arc::new(region))))
    }

    /// Gives the frames of `range` back to the host; the guest reads zeros from them afterwards.
    ///
    /// # Errors
    /// When the range is not wholly inside one region of RAM, or when the kernel refuses.
    pub fn release(&self, range: GfnRange, why: page_share::Release) -> Result<(), RamError> {
        let not_ram = RamError::NotRam { range };
        let Some(region) = self.regions.iter().find(|r| r.frames.covers(range)) else {
            return Err(not_ram);
        };
        if !self.release_unmanaged(region, range)?
            && let Some(managed) = self.region.get()
        {
            managed.release(page_run(range).ok_or(not_ram)?, why);
        }
        self.released.fetch_add(range.pages, Ordering::Relaxed);
        Ok(())
    }

    /// Drops frames of `region` while the memory is unmanaged. `false` when it is managed.
    fn release_unmanaged(&self, region: &RamRegion, range: GfnRange) -> Result<bool, RamError> {
        let _still = match self.region.get() {
            Some(_) => return Ok(false),
            None => lock(&self.unmanaged),
        };
        if self.region.get().is_some() {
            return Ok(false);
        }
        let offset = (range.start.0 - region.frames.start.0) * PAGE_SIZE;
        let host = region.host + offset as usize;
        advise(host, range.pages, MmapAdvise::MADV_DONTNEED)?;
        Ok(true)
    }

    /// The guest takes frames back that it had released for good.
    pub fn take_back(&self, range: GfnRange) {
        if let (Some(managed), Some(run)) = (self.region.get(), page_run(range)) {
            managed.deflate(run);
        }
    }

    /// These frames are read and written by devices all the time: the region that manages the pages leaves them alone.
    pub fn exclude(&self, range: GfnRange) {
        if let (Some(managed), Some(run)) = (self.region.get(), page_run(range)) {
            managed.exclude(run);
        }
    }

    /// The devices are done with what was [excluded](Self::exclude).
    pub fn include(&self, range: GfnRange) {
        if let (Some(managed), Some(run)) = (self.region.get(), page_run(range)) {
            managed.include(run);
        }
    }

    /// These frames probably equal frames of other guests: the region that manages the pages looks at them first. Only
    /// the order of work depends on it.
    pub fn expect_equal(&self, range: GfnRange) {
        if let (Some(managed), Some(run)) = (self.region.get(), page_run(range)) {
            self.shared_read_blocks.add(managed, run);
        }
    }

    /// What was read from disks that guests share and is not under management yet.
    pub fn shared_read_blocks(&self) -> &SharedReadBlocks {
        &self.shared_read_blocks
    }

    /// The region that manages the pages, if there is one.
    pub fn manager(&self) -> Option<&Arc<Region>> {
        self.region.get()
    }

    /// How many frames were given back so far, repeats counted.
    pub fn released_pages(&self) -> u64 {
        self.released.load(Ordering::Relaxed)
    }
}

impl GfnRange {
    /// Whether `other` lies wholly inside.
    pub fn covers(&self, other: GfnRange) -> bool {
        let end = |r: &GfnRange| r.start.0.checked_add(r.pages);
        match (end(self), end(&other)) {
            (Some(mine), Some(its)) => other.pages > 0 && other.start >= self.start && its <= mine,
            _ => false,
        }
    }
}

/// The range in the words of `page_share`, which counts frames in 32 bits.
impl Memory for GuestRam {
    fn bytes(&self) -> u64 {
        self.bytes()
    }

    fn adopt(&self, options: Options) -> Result<Arc<Region>, AdoptError> {
        let ranges = self.ranges().ok_or(AdoptError::Ranges)?;
        self.manage(|| Region::adopt(ranges, options))
    }

    fn shared_read_blocks(&self) -> &SharedReadBlocks {
        self.shared_read_blocks()
    }
}

fn page_run(range: GfnRange) -> Option<page_share::PageRun> {
    let first = page_share::Gfn::new(u32::try_from(range.start.0).ok()?);
    Some(page_share::PageRun {
        first,
        count: u32::try_from(range.pages).ok()?,
    })
}

fn describe(region: &GuestRegionMmap) -> RamRegion {
    RamRegion {
        frames: GfnRange {
            start: Gfn(region.start_addr().0 / PAGE_SIZE),
            pages: region.len() / PAGE_SIZE,
        },
        host: region.as_ptr() as usize,
    }
}

fn advise(host: usize, pages: u64, advice: MmapAdvise) -> Result<(), RamError> {
    let at = std::ptr::with_exposed_provenance_mut(host);
    let Some(at) = std::ptr::NonNull::new(at) else {
        unreachable!("no region is mapped at address 0");
    };
    // SAFETY: every caller passes a range inside a region that `GuestRam` maps and keeps mapped; DONTFORK, DONTDUMP,
    // HUGEPAGE and MERGEABLE do not change bytes, and DONTNEED only changes guest bytes, which no Rust reference ever points to.
    unsafe { madvise(at, (pages * PAGE_SIZE) as usize, advice) }.map_err(|e| RamError::Advice {
        address: host,
        source: e.into(),
    })
}

#[cfg(test)]
mod tests;
