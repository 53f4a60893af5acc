//! The memory that is given back: touched before each measurement, checked after it.
#![allow(unsafe_code)]
// UNSAFETY: the bench says itself which pages of its memory back to give, without the device, to compare with it.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use balloon_driver::{FRAME_SIZE, Frame, Run};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

pub(crate) type Memory = Arc<GuestMemoryMmap>;

const HUGE: u64 = 2 << 20;
/// Where the rings are: a small region of its own at address 0.
const WINDOW: usize = 8 << 20;
const BASE: u64 = 4 << 30;

/// What the arena is made of.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Pages {
    /// 4 KiB pages.
    Small,
    /// Transparent huge pages.
    Huge,
}

pub(crate) struct Arena {
    memory: Memory,
    /// Where guest frame `frames.first()` is in this process.
    host: usize,
    frames: Run,
}

impl Arena {
    pub(crate) fn new(bytes: u64, pages: Pages) -> Result<Self> {
        let region = MmapRegion::new((bytes + HUGE) as usize).context("no address space for the arena")?;
        let start = region.as_ptr() as u64;
        // Huge pages of the guest are huge pages of the host: both addresses have the same remainder.
        let base = BASE + start % HUGE;
        let skip = start.next_multiple_of(HUGE) - start;
        let host = (start + skip) as usize;
        let frames =
            Run::new(Frame::containing(base + skip), bytes / FRAME_SIZE).context("an empty arena")?;
        let advice = if pages == Pages::Huge {
            libc::MADV_HUGEPAGE
        } else {
            libc::MADV_NOHUGEPAGE
        };
        advise(host, bytes as usize, advice).context("the kernel does not take the page size")?;
        let regions = vec![
            GuestRegionMmap::new(MmapRegion::new(WINDOW)?, GuestAddress(0))
                .context("no room for the rings")?,
            GuestRegionMmap::new(region, GuestAddress(base)).context("no room for the arena")?,
        ];
        let memory = Arc::new(GuestMemoryMmap::from_regions(regions)?);
        Ok(Self { memory, host, frames })
    }

    pub(crate) fn memory(&self) -> Memory {
        self.memory.clone()
    }

    pub(crate) fn frames(&self) -> Run {
        self.frames
    }

    fn bytes(&self) -> usize {
        (self.frames.count() * FRAME_SIZE) as usize
    }

    /// Has every page backed by memory.
    pub(crate) fn touch(&self) -> Result<()> {
        advise(self.host, self.bytes(), libc::MADV_POPULATE_WRITE).context("not enough memory for the arena")
    }

    /// Drops one frame, as a peer does.
    pub(crate) fn drop_frame(&self, frame: u32) -> Result<()> {
        Ok(advise(
            self.at(u64::from(frame)),
            FRAME_SIZE as usize,
            libc::MADV_DONTNEED,
        )?)
    }

    /// Drops runs, nothing else. Returns the seconds it took.
    pub(crate) fn drop_runs(&self, runs: &[Run]) -> Result<f64> {
        let start = Instant::now();
        for run in runs {
            let len = (run.count() * FRAME_SIZE) as usize;
            advise(self.at(run.first().number()), len, libc::MADV_DONTNEED)?;
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Makes sure that the pages went: by looking at the page table, not at return codes.
    pub(crate) fn check_gone(&self, frames: &[u32]) -> Result<()> {
        let mut resident = vec![0u8; self.frames.count() as usize];
        // SAFETY: the vector has one byte for each page of the arena.
        let done = unsafe {
            libc::mincore(
                self.host as *mut libc::c_void,
                self.bytes(),
                resident.as_mut_ptr(),
            )
        };
        ensure!(done == 0, io::Error::last_os_error());
        let first = self.frames.first().number();
        let left = frames
            .iter()
            .filter(|&&frame| resident[(u64::from(frame) - first) as usize] & 1 != 0)
            .count();
        ensure!(left == 0, "{left} of {} pages are still there", frames.len());
        Ok(())
    }

    /// The part of the arena that huge pages back.
    pub(crate) fn huge_share(&self) -> Result<f64> {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
        let kib = text
            .lines()
            .find_map(|line| line.strip_prefix("AnonHugePages:")?.trim().strip_suffix(" kB"));
        let kib: f64 = kib.context("smaps_rollup shows no huge pages")?.trim().parse()?;
        Ok((kib * 1024.0 / self.bytes() as f64).min(1.0))
    }

    fn at(&self, frame: u64) -> usize {
        self.host + ((frame - self.frames.first().number()) * FRAME_SIZE) as usize
    }
}

fn advise(start: usize, len: usize, advice: i32) -> io::Result<()> {
    // SAFETY: only ever called with pages of the arena, which nothing refers to.
    match unsafe { libc::madvise(start as *mut libc::c_void, len, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
