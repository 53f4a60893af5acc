//! A guest's swap file: pages by slot, each with a keyed checksum that stays in memory.
//!
//! The file has no name, so nothing is left behind. Space is allocated on the disk before a page is written, so that
//! a full disk is found while the page is still in memory. A page is in the file once all of its bytes were written,
//! never before; it comes back only if its bytes are those that were written to that slot. The checksum is the
//! sketch under a random key of this file, so an attacker who can write to the disk cannot forge it either.
//!
//! Allocating and reading are apart: [`Swap::locate`] is quick and wants the lock, [`Located::read`] waits for the disk
//! and wants none.

mod located;
mod slots;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, Mode, OFlags};

use crate::hash::{DomainKey, PageHasher};
use crate::page::{PAGE_SHIFT, PAGE_SIZE, Page};

pub use located::{Located, LocatedRun};
pub use slots::SwapSlot;
use slots::{Slots, Sum};

/// Most pages in one read.
pub const READ_LIMIT: u32 = 16;

/// Why a swap file did not do as told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwapError {
    /// The file is at its limit.
    #[error(
        "the swap file is full: {limit} pages, all in use; give the guest more swap or take less from it"
    )]
    Full {
        /// Most pages the file may hold.
        limit: u32,
    },
    /// The disk has no room for more of the file.
    #[error("the disk has no room for the swap file beyond {pages} pages; free space or move the file")]
    DiskFull {
        /// Pages that the file has now.
        pages: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// What was read is not what was written. The page is lost; its guest must not run on as if it were not.
    #[error("swap slot {0:?} is corrupt: what was read is not what was written")]
    Corrupt(SwapSlot),
    /// There is no page in this slot.
    #[error("swap slot {0:?} holds no page")]
    Unknown(SwapSlot),
    /// Reading or writing failed. After a write nothing is in the file that was not before.
    #[error("the swap file failed")]
    Io(#[source] io::Error),
}

/// A swap file.
#[derive(Debug)]
pub struct Swap {
    shared: Arc<SwapFile>,
    slots: Slots,
    /// The file system gives disk space back.
    shrinks: bool,
}

/// What a read needs.
#[derive(Debug)]
struct SwapFile {
    file: File,
    hasher: PageHasher,
}

impl SwapFile {
    fn sum(&self, page: &Page) -> Sum {
        NonZeroU64::MIN | self.hasher.sketch(page).get()
    }
}

impl Swap {
    /// A nameless swap file in `directory` for at most `limit` pages.
    ///
    /// # Errors
    /// When the directory does not allow such files, or the kernel refuses random bytes.
    pub fn create(directory: &Path, limit: u32) -> Result<Self, SwapError> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::EXCL;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::open(directory, flags, mode).map_err(|error| SwapError::Io(error.into()))?;
        Self::with_file(File::from(file), limit)
    }

    /// Swaps to `file`, whose contents are overwritten.
    ///
    /// # Errors
    /// When the kernel refuses random bytes.
    pub fn with_file(file: File, limit: u32) -> Result<Self, SwapError> {
        let key = DomainKey::random().map_err(SwapError::Io)?;
        let hasher = PageHasher::new(&key);
        Ok(Self {
            shared: Arc::new(SwapFile { file, hasher }),
            slots: Slots::new(limit),
            shrinks: true,
        })
    }

    /// Pages in the file.
    pub fn pages(&self) -> u32 {
        self.slots.used()
    }

    /// Pages that still fit.
    pub fn room(&self) -> u32 {
        self.slots.limit() - self.slots.used()
    }

    /// Bytes of disk space that the file has, used or not.
    pub fn disk_bytes(&self) -> u64 {
        u64::from(self.slots.backed()) << PAGE_SHIFT
    }

    /// Bytes of disk space that the file has and no page is in.
    pub fn spare_bytes(&self) -> u64 {
        u64::from(self.slots.free()) << PAGE_SHIFT
    }

    /// Bytes of memory in use besides the file.
    pub fn metadata_bytes(&self) -> usize {
        self.slots.bytes() + size_of::<SwapFile>() + PAGE_SIZE
    }

    /// Writes `pages` and appends their slots to `slots`, consecutive where possible. All or nothing.
    ///
    /// # Errors
    /// [`SwapError::Full`], [`SwapError::DiskFull`], [`SwapError::Io`]: no page is in the file, `slots` is as it was.
    pub fn write(&mut self, pages: &[Page], slots: &mut Vec<SwapSlot>) -> Result<(), SwapError> {
        let start = slots.len();
        self.reserve(pages.len(), slots)?;
        let reserved = &slots[start..];
        let follows = |before: &SwapSlot, after: &SwapSlot| before.after(1) == *after;
        let mut bytes = pages;
        let mut outcome = Ok(());
        for run in reserved.chunk_by(follows) {
            let (head, rest) = bytes.split_at(run.len());
            bytes = rest;
            let written = self
                .shared
                .file
                .write_all_at(head.as_flattened(), run[0].offset());
            outcome = outcome.and(written);
        }
        if let Err(error) = outcome {
            slots.truncate(start);
            return Err(SwapError::Io(error));
        }
        for (&slot, page) in slots[start..].iter().zip(pages) {
            self.slots.fill(slot, self.shared.sum(page));
        }
        Ok(())
    }

    /// Writes as many of `pages` as there is room for, from the first on, and appends their slots to `slots`: a full file
    /// takes one page for each that came back, however many are offered.
    ///
    /// # Errors
    /// As [`Swap::write`]; pages that have no slot then are not in the file.
    pub(crate) fn write_fitting(
        &mut self,
        pages: &[Page],
        slots: &mut Vec<SwapSlot>,
    ) -> Result<(), SwapError> {
        let written = self.write(pages, slots);
        if !matches!(written, Err(SwapError::Full { .. } | SwapError::DiskFull { .. })) {
            return written;
        }
        // Where there is room for all, there is no disk space for them.
        let fitting = match self.room() as usize {
            room if room < pages.len() => room,
            _ => self.slots.free() as usize,
        };
        match fitting {
            0 => written,
            _ => self.write_fitting(&pages[..fitting], slots).and(written),
        }
    }

    /// What is needed to read `slot`. Does not allocate.
    ///
    /// The slot must not be freed before it was read: its next page would look like corruption.
    ///
    /// # Errors
    /// [`SwapError::Unknown`].
    pub fn locate(&self, slot: SwapSlot) -> Result<Located, SwapError> {
        let sum = self.slots.sum(slot);
        Ok(Located {
            shared: Arc::clone(&self.shared),
            slot,
            sum: sum.ok_or(SwapError::Unknown(slot))?,
        })
    }

    /// What is needed to read the `count` pages from slot `first` on, at most [`READ_LIMIT`], in one go. Does not
    /// allocate. None of the slots must be freed before.
    ///
    /// # Errors
    /// [`SwapError::Unknown`] for the first slot that holds no page.
    ///
    /// # Panics
    /// When there are more than [`READ_LIMIT`].
    pub fn locate_run(&self, first: SwapSlot, count: u32) -> Result<LocatedRun, SwapError> {
        assert!(count <= READ_LIMIT, "{count} pages in one read");
        let mut sums = [None; READ_LIMIT as usize];
        for (at, sum) in (0..).zip(&mut sums[..count as usize]) {
            let slot = first.after(at);
            *sum = Some(self.slots.sum(slot).ok_or(SwapError::Unknown(slot))?);
        }
        Ok(LocatedRun {
            shared: Arc::clone(&self.shared),
            first,
            sums,
        })
    }

    /// Forgets the page in `slot`.
    ///
    /// # Errors
    /// [`SwapError::Unknown`].
    pub fn free(&mut self, slot: SwapSlot) -> Result<(), SwapError> {
        let known = self.slots.empty(slot);
        known.then_some(()).ok_or(SwapError::Unknown(slot))
    }

    /// Names up to 16 MiB in a row without a page, whose disk space and page cache can go back: [`Hole::punch`] it
    /// without the lock and tell [`Swap::shrunk`]. `None` when there is none, or when the file system does not take space
    /// back. The MiB that the next page goes to stays while there are pages. Does not allocate.
    pub fn shrink(&mut self) -> Option<Hole> {
        let extents = self.shrinks.then(|| self.slots.leave()).flatten()?;
        let last = self.slots.slots_of(extents.end - 1);
        Some(Hole {
            shared: Arc::clone(&self.shared),
            slots: self.slots.slots_of(extents.start).start..last.end,
            extents,
        })
    }

    /// What became of the space that [`Swap::shrink`] named. After a failure it is used like any other, and there is no
    /// next one.
    pub fn shrunk(&mut self, hole: Hole, punched: io::Result<()>) {
        self.slots.left(hole.extents, punched.is_ok());
        if let Err(error) = punched {
            self.shrinks = false;
            log::info!("the swap file keeps the disk space that it has: {error}");
        }
    }

    /// Appends `count` free slots to `slots`, in file order from where the last search ended.
    fn reserve(&mut self, count: usize, slots: &mut Vec<SwapSlot>) -> Result<(), SwapError> {
        let full = SwapError::Full {
            limit: self.slots.limit(),
        };
        if count > self.room() as usize {
            return Err(full);
        }
        while (self.slots.free() as usize) < count {
            // None is left only while one is leaving.
            let Some(extent) = self.slots.extent_to_back() else {
                return Err(full);
            };
            self.allocate(extent)?;
        }
        self.slots.choose(count, slots);
        Ok(())
    }

    /// Gives an extent its space on the disk, so that a full disk is found now.
    fn allocate(&mut self, extent: u32) -> Result<(), SwapError> {
        let slots = self.slots.slots_of(extent);
        let (offset, length) = bytes_of(&slots);
        let allocated = rustix::fs::fallocate(&self.shared.file, FallocateFlags::empty(), offset, length);
        let grown = match allocated {
            // File systems without fallocate (9p, some network ones): a full disk shows when writing.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let known = self.shared.file.metadata().map(|file| file.len());
                known.and_then(|known| self.shared.file.set_len(known.max(offset + length)))
            }
            outcome => outcome.map_err(io::Error::from),
        };
        let pages = self.slots.backed();
        grown.map_err(|source| SwapError::DiskFull { pages, source })?;
        self.slots.back(extent);
        Ok(())
    }
}

/// Space of a swap file that is to go back to the disk.
#[derive(Debug)]
#[must_use = "nothing is put there before the swap file has heard what became of it"]
pub struct Hole {
    shared: Arc<SwapFile>,
    extents: Range<u32>,
    slots: Range<u32>,
}

impl Hole {
    /// Gives the space back. Waits for the disk where needed.
    ///
    /// # Errors
    /// When the file system cannot punch holes.
    pub fn punch(&self) -> io::Result<()> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (offset, length) = bytes_of(&self.slots);
        rustix::fs::fallocate(&self.shared.file, hole, offset, length).map_err(io::Error::from)
    }

    /// Bytes of disk space.
    pub fn bytes(&self) -> u64 {
        bytes_of(&self.slots).1
    }
}

/// Where slots are in the file: offset and length in bytes.
fn bytes_of(slots: &Range<u32>) -> (u64, u64) {
    let (offset, count) = (SwapSlot::from_bits(slots.start).offset(), slots.len() as u64);
    (offset, count << PAGE_SHIFT)
}
