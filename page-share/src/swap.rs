//! A guest's swap file: pages by slot, each with a keyed checksum that stays in memory.
//!
//! The file has no name, so nothing is left behind. Space is allocated on the disk before a page is written, so that
//! a full disk is found while the page is still in memory. A page is in the file once all of its bytes were written,
//! never before; it comes back only if its bytes are those that were written to that slot. The checksum is the
//! sketch under a random key of this file, so whoever can write to the disk cannot forge it either.
//!
//! Allocating and reading are apart: [`Swap::locate`] is quick and wants the lock, [`Located::read`] waits for the disk
//! and wants none.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, Mode, OFlags};

use crate::hash::{DomainKey, PageHasher};
use crate::page::{PAGE_SHIFT, PAGE_SIZE, Page};

/// Pages by which the file grows: 16 MiB.
const EXTENT: u32 = (16 << 20) / PAGE_SIZE as u32;

/// Most pages in one read.
pub const READ_LIMIT: u32 = 16;

/// A page's place in a swap file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SwapSlot(u32);

impl SwapSlot {
    /// The slot whose number was kept. A wrong one is found out when it is used.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The slot as a number.
    pub const fn bits(self) -> u32 {
        self.0
    }

    fn offset(self) -> u64 {
        u64::from(self.0) << PAGE_SHIFT
    }
}

/// Why a swap file did not do as told.
#[derive(Debug, thiserror::Error)]
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
    shared: Arc<Shared>,
    /// The checksum of each slot's page; `None` where it is free.
    sums: Vec<Option<Sum>>,
    used: u32,
    limit: u32,
    /// Slot to look at first.
    next: u32,
}

/// What a read needs.
#[derive(Debug)]
struct Shared {
    file: File,
    hasher: PageHasher,
}

/// A page's checksum: its sketch, with one bit given up so that a free slot costs no more than a used one.
type Sum = NonZeroU64;

impl Shared {
    fn sum(&self, page: &Page) -> Sum {
        NonZeroU64::MIN | self.hasher.sketch(page).get()
    }
}

/// A page of the file, to be read without its lock.
#[derive(Debug, Clone)]
pub struct Located {
    shared: Arc<Shared>,
    slot: SwapSlot,
    sum: Sum,
}

/// Pages of consecutive slots, to be read in one go without the file's lock.
#[derive(Debug, Clone)]
pub struct LocatedRun {
    shared: Arc<Shared>,
    first: SwapSlot,
    sums: [Option<Sum>; READ_LIMIT as usize],
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
            shared: Arc::new(Shared { file, hasher }),
            sums: Vec::new(),
            used: 0,
            limit,
            next: 0,
        })
    }

    /// Pages in the file.
    pub fn pages(&self) -> u32 {
        self.used
    }

    /// Pages that still fit.
    pub fn room(&self) -> u32 {
        self.limit - self.used
    }

    /// Bytes of memory in use beside the file.
    pub fn metadata_bytes(&self) -> usize {
        self.sums.capacity() * size_of::<Option<Sum>>() + size_of::<Shared>() + PAGE_SIZE
    }

    /// Writes `pages` and appends their slots to `slots`, consecutive where possible. All or nothing.
    ///
    /// # Errors
    /// [`SwapError::Full`], [`SwapError::DiskFull`], [`SwapError::Io`]: no page is in the file, `slots` is as it was.
    pub fn write(&mut self, pages: &[Page], slots: &mut Vec<SwapSlot>) -> Result<(), SwapError> {
        let start = slots.len();
        self.reserve(pages.len(), slots)?;
        let reserved = &slots[start..];
        let follows = |before: &SwapSlot, after: &SwapSlot| before.0 + 1 == after.0;
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
            self.sums[slot.0 as usize] = Some(self.shared.sum(page));
        }
        self.used += pages.len() as u32;
        Ok(())
    }

    /// What is needed to read `slot`. Does not allocate.
    ///
    /// The slot must not be freed before it was read: its next page would look like corruption.
    ///
    /// # Errors
    /// [`SwapError::Unknown`].
    pub fn locate(&self, slot: SwapSlot) -> Result<Located, SwapError> {
        let sum = self.sums.get(slot.0 as usize).copied().flatten();
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
        for (number, sum) in (first.0..).zip(&mut sums[..count as usize]) {
            *sum = self.sums.get(number as usize).copied().flatten();
            if sum.is_none() {
                return Err(SwapError::Unknown(SwapSlot(number)));
            }
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
        let sum = self.sums.get_mut(slot.0 as usize);
        sum.and_then(Option::take).ok_or(SwapError::Unknown(slot))?;
        self.used -= 1;
        Ok(())
    }

    /// Sends what was written to the disk and out of the page cache: only then has swapping freed memory. Slow.
    ///
    /// # Errors
    /// [`SwapError::Io`]; pages that did not arrive will be found corrupt when they are read.
    pub fn flush(&self) -> Result<(), SwapError> {
        self.shared.file.sync_data().map_err(SwapError::Io)?;
        let dropped = rustix::fs::fadvise(&self.shared.file, 0, None, Advice::DontNeed);
        dropped.map_err(|error| SwapError::Io(error.into()))
    }

    /// Gives disk space and page cache of free slots back.
    ///
    /// # Errors
    /// When the file system cannot punch holes.
    pub fn trim(&mut self) -> Result<(), SwapError> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for (number, extent) in self.sums.chunks(EXTENT as usize).enumerate() {
            if extent.iter().all(Option::is_none) {
                let start = SwapSlot(number as u32 * EXTENT).offset();
                let length = (extent.len() * PAGE_SIZE) as u64;
                rustix::fs::fallocate(&self.shared.file, hole, start, length)
                    .map_err(|error| SwapError::Io(error.into()))?;
            }
        }
        Ok(())
    }

    /// Appends `count` free slots to `slots`, in file order from where the last search ended.
    fn reserve(&mut self, count: usize, slots: &mut Vec<SwapSlot>) -> Result<(), SwapError> {
        if count > self.room() as usize {
            return Err(SwapError::Full { limit: self.limit });
        }
        while self.sums.len() - (self.used as usize) < count {
            self.grow()?;
        }
        let total = self.sums.len() as u32;
        let order = (self.next..total).chain(0..self.next);
        let free = order.filter(|&number| self.sums[number as usize].is_none());
        slots.extend(free.take(count).map(SwapSlot));
        self.next = slots.last().map_or(0, |slot| (slot.0 + 1) % total.max(1));
        Ok(())
    }

    /// Adds an extent, with its space on the disk.
    fn grow(&mut self) -> Result<(), SwapError> {
        let pages = self.sums.len() as u32;
        let added = EXTENT.min(self.limit - pages);
        let (offset, length) = (SwapSlot(pages).offset(), u64::from(added) << PAGE_SHIFT);
        let allocated = rustix::fs::fallocate(&self.shared.file, FallocateFlags::empty(), offset, length);
        let grown = match allocated {
            // File systems without fallocate (9p, some network ones): a full disk shows when writing.
            Err(rustix::io::Errno::OPNOTSUPP) => self.shared.file.set_len(offset + length),
            outcome => outcome.map_err(io::Error::from),
        };
        grown.map_err(|source| SwapError::DiskFull { pages, source })?;
        self.sums.resize((pages + added) as usize, None);
        Ok(())
    }
}

impl Located {
    /// Reads the page into `page`, waiting for the disk where needed, and verifies it.
    ///
    /// # Errors
    /// [`SwapError::Corrupt`], [`SwapError::Io`]: the contents of `page` mean nothing then and must not reach a guest.
    pub fn read(&self, page: &mut Page) -> Result<(), SwapError> {
        match self.shared.file.read_exact_at(page, self.slot.offset()) {
            Ok(()) if self.shared.sum(page) == self.sum => Ok(()),
            Ok(()) => Err(SwapError::Corrupt(self.slot)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(SwapError::Corrupt(self.slot)),
            Err(error) => Err(SwapError::Io(error)),
        }
    }
}

impl LocatedRun {
    /// Reads the first of the pages into `pages`, with one read, and verifies each.
    ///
    /// # Errors
    /// As [`Located::read`], for the first page that is not what was written; all of `pages` means nothing then.
    ///
    /// # Panics
    /// When `pages` are more than [`READ_LIMIT`].
    pub fn read(&self, pages: &mut [Page]) -> Result<(), SwapError> {
        match self
            .shared
            .file
            .read_exact_at(pages.as_flattened_mut(), self.first.offset())
        {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(SwapError::Corrupt(self.first));
            }
            Err(error) => return Err(SwapError::Io(error)),
        }
        let sums = &self.sums[..pages.len()];
        let right = |(page, sum): (&Page, &Option<Sum>)| *sum == Some(self.shared.sum(page));
        match pages.iter().zip(sums).position(|both| !right(both)) {
            None => Ok(()),
            Some(at) => Err(SwapError::Corrupt(SwapSlot(self.first.0 + at as u32))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::fs::{MemfdFlags, SealFlags};
    use std::collections::HashMap;

    fn swap(limit: u32) -> Swap {
        Swap::create(&std::env::temp_dir(), limit).unwrap()
    }

    fn write(swap: &mut Swap, pages: &[Page]) -> Vec<SwapSlot> {
        let mut slots = Vec::new();
        swap.write(pages, &mut slots).unwrap();
        slots
    }

    fn read(swap: &Swap, slot: SwapSlot) -> Result<Page, SwapError> {
        let mut page = [0; PAGE_SIZE];
        swap.locate(slot)?.read(&mut page).map(|()| page)
    }

    #[test]
    fn a_batch_gets_consecutive_slots_and_comes_back() {
        let mut swap = swap(100_000);
        let pages: Vec<Page> = (0..5000).map(|i| [i as u8; PAGE_SIZE]).collect();
        let slots = write(&mut swap, &pages);
        assert!(slots.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0));
        swap.flush().unwrap();
        for (slot, page) in slots.iter().zip(&pages) {
            assert_eq!(read(&swap, *slot).unwrap(), *page);
        }
    }

    #[test]
    fn consecutive_slots_are_read_at_once_and_each_is_verified() {
        let mut swap = swap(100);
        let pages: Vec<Page> = (0..16).map(|i| [i as u8; PAGE_SIZE]).collect();
        let slots = write(&mut swap, &pages);
        let mut back = vec![[0xff; PAGE_SIZE]; 16];
        swap.locate_run(slots[0], 16).unwrap().read(&mut back).unwrap();
        assert_eq!(back, pages);
        swap.locate_run(slots[5], 3)
            .unwrap()
            .read(&mut back[..3])
            .unwrap();
        assert_eq!(back[..3], pages[5..8]);
        swap.shared.file.write_all_at(&[99], slots[7].offset()).unwrap();
        let located = swap.locate_run(slots[5], 3).unwrap();
        assert!(matches!(located.read(&mut back[..3]), Err(SwapError::Corrupt(slot)) if slot == slots[7]));
        located.read(&mut back[..2]).unwrap();
        swap.free(slots[6]).unwrap();
        assert!(matches!(swap.locate_run(slots[5], 3), Err(SwapError::Unknown(slot)) if slot == slots[6]));
        swap.shared.file.set_len(slots[5].offset() + 100).unwrap();
        assert!(matches!(located.read(&mut back[..3]), Err(SwapError::Corrupt(_))));
    }

    #[test]
    fn every_way_to_damage_a_slot_is_detected() {
        let mut swap = swap(100);
        let slots = write(&mut swap, &[[1; PAGE_SIZE], [2; PAGE_SIZE], [3; PAGE_SIZE]]);
        let file = swap.shared.file.try_clone().unwrap();
        let corrupt =
            |swap: &Swap, slot| matches!(read(swap, slot), Err(SwapError::Corrupt(named)) if named == slot);
        file.write_all_at(&[9], slots[0].offset() + 4095).unwrap();
        assert!(corrupt(&swap, slots[0]), "one byte");
        file.write_all_at(&[3; PAGE_SIZE], slots[1].offset()).unwrap();
        assert!(corrupt(&swap, slots[1]), "another slot's page");
        assert_eq!(read(&swap, slots[2]).unwrap(), [3; PAGE_SIZE]);
        file.write_all_at(&[0; PAGE_SIZE], slots[2].offset()).unwrap();
        assert!(corrupt(&swap, slots[2]), "zeros");
        file.set_len(slots[2].offset() + 100).unwrap();
        assert!(corrupt(&swap, slots[2]), "a short file");
        swap.free(slots[1]).unwrap();
        assert!(matches!(read(&swap, slots[1]), Err(SwapError::Unknown(_))));
        assert!(matches!(swap.free(slots[1]), Err(SwapError::Unknown(_))));
        assert!(matches!(
            swap.free(SwapSlot(u32::MAX)),
            Err(SwapError::Unknown(_))
        ));
    }

    #[test]
    fn a_stale_page_of_the_same_slot_is_corrupt() {
        let mut swap = swap(1);
        let slot = write(&mut swap, &[[1; PAGE_SIZE]])[0];
        swap.free(slot).unwrap();
        assert_eq!(write(&mut swap, &[[2; PAGE_SIZE]]), [slot]);
        // The write never reached the disk: the old page is still there.
        swap.shared.file.write_all_at(&[1; PAGE_SIZE], 0).unwrap();
        assert!(matches!(read(&swap, slot), Err(SwapError::Corrupt(_))));
    }

    #[test]
    fn a_full_file_takes_nothing_of_a_batch() {
        let mut swap = swap(3);
        let slots = write(&mut swap, &[[1; PAGE_SIZE], [2; PAGE_SIZE]]);
        let mut more = Vec::new();
        let error = swap.write(&[[3; PAGE_SIZE], [4; PAGE_SIZE]], &mut more);
        assert!(matches!(error, Err(SwapError::Full { limit: 3 })));
        assert!(more.is_empty());
        assert_eq!((swap.pages(), swap.room()), (2, 1));
        swap.free(slots[0]).unwrap();
        assert_eq!(write(&mut swap, &[[3; PAGE_SIZE], [4; PAGE_SIZE]]).len(), 2);
        assert_eq!(read(&swap, slots[1]).unwrap(), [2; PAGE_SIZE]);
    }

    /// A file that cannot grow past `bytes`: what a full disk looks like.
    fn small_disk(bytes: u64) -> File {
        let memfd = rustix::fs::memfd_create("small-disk", MemfdFlags::ALLOW_SEALING).unwrap();
        let file = File::from(memfd);
        file.set_len(bytes).unwrap();
        rustix::fs::fcntl_add_seals(&file, SealFlags::GROW).unwrap();
        file
    }

    #[test]
    fn a_full_disk_is_an_error_and_nothing_is_trusted() {
        let mut swap = Swap::with_file(small_disk(0), 100).unwrap();
        let mut slots = Vec::new();
        let error = swap.write(&[[1; PAGE_SIZE]], &mut slots);
        assert!(matches!(error, Err(SwapError::DiskFull { pages: 0, .. })));
        // A disk that promised the space and breaks the promise in the middle of a batch.
        let mut swap = Swap::with_file(small_disk(2 << PAGE_SHIFT | 100), 3).unwrap();
        swap.sums.resize(3, None);
        let error = swap.write(&[[1; PAGE_SIZE]; 3], &mut slots);
        assert!(matches!(error, Err(SwapError::Io(_))));
        assert!(slots.is_empty() && swap.pages() == 0);
        assert!(matches!(read(&swap, SwapSlot(0)), Err(SwapError::Unknown(_))));
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        assert!(matches!(
            Swap::create(Path::new("/nowhere"), 1),
            Err(SwapError::Io(_))
        ));
    }

    #[test]
    fn trimming_gives_disk_space_back() {
        use std::os::unix::fs::MetadataExt;
        let memfd = rustix::fs::memfd_create("swap", MemfdFlags::empty()).unwrap();
        let mut swap = Swap::with_file(File::from(memfd), EXTENT * 2).unwrap();
        let slots = write(&mut swap, &vec![[1; PAGE_SIZE]; EXTENT as usize + 1]);
        for &slot in &slots[..EXTENT as usize] {
            swap.free(slot).unwrap();
        }
        let blocks = |swap: &Swap| swap.shared.file.metadata().unwrap().blocks();
        let before = blocks(&swap);
        swap.trim().unwrap();
        assert_eq!(before - blocks(&swap), (16 << 20) / 512);
        assert_eq!(read(&swap, slots[EXTENT as usize]).unwrap(), [1; PAGE_SIZE]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec((any::<u8>(), 0usize..20), 1..100)) {
            let mut swap = swap(64);
            let mut map: HashMap<SwapSlot, Page> = HashMap::new();
            for (seed, count) in steps {
                let victim = map.keys().min_by_key(|slot| slot.bits() ^ u32::from(seed)).copied();
                if let (true, Some(slot)) = (seed % 2 == 0, victim) {
                    prop_assert_eq!(read(&swap, slot).unwrap(), map[&slot]);
                    swap.free(slot).unwrap();
                    map.remove(&slot);
                } else {
                    let pages: Vec<Page> = (0..count).map(|i| [seed ^ i as u8; PAGE_SIZE]).collect();
                    let mut slots = Vec::new();
                    let fits = map.len() + count <= 64;
                    prop_assert_eq!(swap.write(&pages, &mut slots).is_ok(), fits);
                    for (slot, page) in slots.into_iter().zip(pages) {
                        prop_assert!(map.insert(slot, page).is_none());
                    }
                }
                prop_assert_eq!(swap.pages() as usize, map.len());
            }
            for (slot, page) in map {
                prop_assert_eq!(read(&swap, slot).unwrap(), page);
            }
        }
    }
}
