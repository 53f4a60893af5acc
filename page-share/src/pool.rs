//! The pool of one sharing domain: a memfd of common copies.
//!
//! The manager writes it with pwrite(2) and never maps it. Guests' processes get a second, read-only open file. What
//! protects the bytes: mode 0400 (a process of another uid cannot re-open the file through /proc/self/fd, not even
//! for reading), `F_SEAL_SHRINK` (no process can cut the file under a mapping: no SIGBUS) and `F_SEAL_SEAL`. What does
//! not: a process of the same uid or with CAP_DAC_OVERRIDE can chmod and re-open it for writing, so a VMM also needs
//! seccomp. `F_SEAL_FUTURE_WRITE` would stop that as well, but forbids the manager's own writes and punching.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags};

use crate::hash::{PageHash, PageHasher, Sketch};
use crate::page::{GuestId, PAGE_SIZE, Page, Slot};
use crate::placement::Placement;

/// Slots in an extent, the step by which a pool grows: 64 MiB.
pub const EXTENT_SLOTS: u32 = (64 << 20) / PAGE_SIZE as u32;

/// What a slot holds: with the sketch, half the hash names the content by 128 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) sketch: Sketch,
    check: u64,
}

impl Content {
    pub(crate) fn new(sketch: Sketch, hash: PageHash) -> Self {
        let (half, _) = hash.as_bytes().as_chunks::<8>();
        Self {
            sketch,
            check: u64::from_le_bytes(half[0]),
        }
    }

    /// Whether `page` is this content.
    pub(crate) fn matches(self, hasher: &PageHasher, page: &Page) -> bool {
        self == Self::new(hasher.sketch(page), hasher.hash(page))
    }

    const NONE: Self = Self {
        sketch: Sketch::new(0),
        check: 0,
    };
}

/// How many pages a pool may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLimit {
    /// At all.
    pub pages: u32,
    /// Once it has so many, no page enters that one guest alone has, however often, and no copy of one that is there.
    pub alone: u32,
}

/// Whose pages are to enter a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owners {
    /// One guest's alone.
    One,
    /// Those of two guests.
    Two,
}

impl Owners {
    /// Of one page of `a` and one of `b`.
    pub(crate) fn of(a: GuestId, b: GuestId) -> Self {
        if a == b { Self::One } else { Self::Two }
    }
}

/// Pages of common content in a memfd.
#[derive(Debug)]
pub(crate) struct Pool {
    file: File,
    readers: Arc<File>,
    placement: Placement,
    contents: Vec<Content>,
    /// Most slots in use at a time, now.
    limit: PoolLimit,
    /// The same for ever.
    most: u32,
    /// Most slots that may ever exist.
    slot_limit: u32,
}

impl Pool {
    /// An empty pool that never has more than `most` pages.
    pub(crate) fn new(most: u32) -> io::Result<Self> {
        // Twice the address space: long free stretches matter more than file offsets, which cost nothing.
        let slot_limit = most
            .saturating_mul(2)
            .checked_next_multiple_of(EXTENT_SLOTS)
            .unwrap_or(u32::MAX / EXTENT_SLOTS * EXTENT_SLOTS);
        let (file, readers) = sealed_memfd()?;
        Ok(Self {
            file,
            readers: Arc::new(readers),
            placement: Placement::new(),
            contents: Vec::new(),
            limit: PoolLimit {
                pages: most,
                alone: most,
            },
            most,
            slot_limit,
        })
    }

    /// No page enters beyond `limit` from now on. What is there stays.
    pub(crate) fn set_limit(&mut self, limit: PoolLimit) {
        self.limit = PoolLimit {
            pages: limit.pages.min(self.most),
            alone: limit.alone.min(limit.pages).min(self.most),
        };
    }

    fn has_room(&self, owners: Owners) -> bool {
        let limit = match owners {
            Owners::One => self.limit.alone,
            Owners::Two => self.limit.pages,
        };
        self.placement.used() < limit
    }

    /// The read-only open file for guests' processes.
    pub(crate) fn readers(&self) -> &Arc<File> {
        &self.readers
    }

    pub(crate) fn slot_limit(&self) -> u32 {
        self.slot_limit
    }

    /// Slots that exist, used or not.
    pub(crate) fn slots(&self) -> u32 {
        self.placement.slots()
    }

    /// Pages in the pool.
    pub(crate) fn used(&self) -> u32 {
        self.placement.used()
    }

    /// The number of the memfd, the same in every process that has it.
    pub(crate) fn inode(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.ino())
    }

    /// Bytes of memory that the memfd takes, as the kernel counts them.
    pub(crate) fn resident_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// What `slot` holds, or `None` when it is free.
    pub(crate) fn content(&self, slot: Slot) -> Option<Content> {
        let used = self.placement.is_used(slot);
        used.then(|| self.contents[slot.get() as usize])
    }

    /// Reserves the next slot for `guest`, to hold `content`; `None` when the pool is full for these `owners`.
    pub(crate) fn place(&mut self, guest: GuestId, owners: Owners, content: Content) -> Option<Slot> {
        if !self.has_room(owners) {
            return None;
        }
        let slot = match self.placement.place(guest) {
            Some(slot) => slot,
            None if self.grow().is_some() => self.placement.place(guest)?,
            None => self.placement.place_in_gap(guest)?,
        };
        self.contents[slot.get() as usize] = content;
        Some(slot)
    }

    /// Reserves `slot` itself to hold `content`, which another slot has already; `false` when it is in use or the pool is
    /// full.
    pub(crate) fn place_at(&mut self, slot: Slot, content: Content) -> bool {
        let placed = self.has_room(Owners::One) && self.placement.place_at(slot);
        if placed {
            self.contents[slot.get() as usize] = content;
        }
        placed
    }

    /// The first of 64 free slots in a row, aligned, that lie in no guest's window.
    pub(crate) fn free_group(&mut self) -> Option<u32> {
        self.placement.free_word().or_else(|| {
            self.grow()?;
            self.placement.free_word()
        })
    }

    /// Writes `pages` into the slots from `first` on.
    pub(crate) fn write(&self, first: Slot, pages: &[Page]) -> io::Result<()> {
        self.file.write_all_at(pages.as_flattened(), first.offset())
    }

    /// The bytes of `slot`.
    pub(crate) fn read(&self, slot: Slot) -> io::Result<Page> {
        let mut page = [0; PAGE_SIZE];
        self.file.read_exact_at(&mut page, slot.offset())?;
        Ok(page)
    }

    /// Makes `slots` free and gives their memory back to the kernel. Sorts the slots.
    ///
    /// The slots are free even when punching fails: they hold memory until they are used again, no more.
    pub(crate) fn free(&mut self, slots: &mut [Slot]) -> io::Result<()> {
        slots.sort_unstable();
        for &slot in slots.iter() {
            self.contents[slot.get() as usize] = Content::NONE;
            self.placement.free(slot);
        }
        let mut outcome = Ok(());
        for run in slots.chunk_by(|before, after| before.next() == Some(*after)) {
            outcome = outcome.and(self.punch(run[0], run.len()));
        }
        outcome
    }

    /// Forgets where `guest` would publish next.
    pub(crate) fn close_window(&mut self, guest: GuestId) {
        self.placement.close_window(guest);
    }

    /// Bytes of memory in use besides the pages themselves.
    pub(crate) fn bytes(&self) -> usize {
        self.contents.capacity() * size_of::<Content>() + self.placement.bytes()
    }

    fn punch(&self, first: Slot, slots: usize) -> io::Result<()> {
        let length = (slots * PAGE_SIZE) as u64;
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        loop {
            match rustix::fs::fallocate(&self.file, hole, first.offset(), length) {
                Err(rustix::io::Errno::INTR) => {}
                outcome => return Ok(outcome?),
            }
        }
    }

    /// Adds an extent; `None` at the limit or when the kernel refuses.
    fn grow(&mut self) -> Option<()> {
        let slots = self.placement.slots() + EXTENT_SLOTS;
        if slots > self.slot_limit {
            return None;
        }
        self.file.set_len(Slot::new(slots).offset()).ok()?;
        self.placement.grow(EXTENT_SLOTS);
        self.contents.reserve_exact(EXTENT_SLOTS as usize);
        self.contents.resize(slots as usize, Content::NONE);
        Some(())
    }
}

#[cfg(test)]
impl Pool {
    /// From now on no page can be written or punched: the file is open for reading only.
    pub(crate) fn fail_writes(&mut self) {
        self.file = self.readers.try_clone().expect("a descriptor is free");
    }
}

/// What the memfd of every pool is called: `/proc/PID/fd` shows it as `/memfd:levy-pool (deleted)`.
pub const POOL_FILE: &str = "levy-pool";

/// A memfd that can only grow, and a read-only open file of it.
fn sealed_memfd() -> io::Result<(File, File)> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
    let memfd: OwnedFd = rustix::fs::memfd_create(POOL_FILE, flags)?;
    rustix::fs::fchmod(&memfd, Mode::RUSR)?;
    rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::SEAL)?;
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    let readers = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((File::from(memfd), File::from(readers)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::DomainKey;
    use std::os::fd::AsFd;
    use std::process::Command;

    const GUEST: GuestId = GuestId::new(0);

    fn content(page: &Page) -> Content {
        let hasher = PageHasher::new(&DomainKey::from_bytes([1; 32]));
        Content::new(hasher.sketch(page), hasher.hash(page))
    }

    fn filled(pages: u32) -> (Pool, Vec<Slot>) {
        let mut pool = Pool::new(pages).unwrap();
        let page = [0xa5; PAGE_SIZE];
        let slots: Vec<_> = (0..pages)
            .map(|_| pool.place(GUEST, Owners::Two, content(&page)).unwrap())
            .collect();
        for &slot in &slots {
            pool.write(slot, &[page]).unwrap();
        }
        (pool, slots)
    }

    #[test]
    fn punching_gives_memory_back_and_only_that_of_free_slots() {
        let (mut pool, mut slots) = filled(1000);
        assert_eq!(pool.resident_bytes().unwrap(), 1000 << 12);
        let kept = slots.split_off(900);
        pool.free(&mut slots).unwrap();
        assert_eq!(pool.resident_bytes().unwrap(), 100 << 12);
        assert_eq!(pool.used(), 100);
        for slot in kept {
            assert_eq!(pool.read(slot).unwrap(), [0xa5; PAGE_SIZE]);
        }
        assert_eq!(pool.read(slots[0]).unwrap(), [0; PAGE_SIZE]);
        assert_eq!(pool.content(slots[0]), None);
    }

    #[test]
    fn a_full_pool_refuses_and_takes_pages_again_after_a_release() {
        let (mut pool, slots) = filled(EXTENT_SLOTS);
        let page = [1; PAGE_SIZE];
        assert_eq!(pool.place(GUEST, Owners::Two, content(&page)), None);
        pool.free(&mut [slots[5]]).unwrap();
        assert!(pool.place(GUEST, Owners::Two, content(&page)).is_some());
        assert_eq!(pool.place(GUEST, Owners::Two, content(&page)), None);
    }

    #[test]
    fn the_readers_file_cannot_be_written_cut_or_unsealed() {
        let (pool, _) = filled(1);
        let readers = pool.readers();
        assert!(readers.write_at(b"x", 0).is_err());
        assert!(readers.set_len(0).is_err());
        assert!(
            pool.file.set_len(0).is_err(),
            "F_SEAL_SHRINK holds for the manager too"
        );
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert!(rustix::fs::fallocate(readers, hole, 0, 4096).is_err());
        assert!(rustix::fs::fcntl_add_seals(readers, SealFlags::WRITE).is_err());
        assert!(rustix::fs::fcntl_add_seals(&pool.file, SealFlags::WRITE).is_err());
        assert_eq!(pool.read(Slot::new(0)).unwrap(), [0xa5; PAGE_SIZE]);
    }

    /// Runs `script` as the user `nobody` with the read-only file as its standard input, and says whether it succeeded.
    fn as_nobody(pool: &Pool, script: &str) -> bool {
        use std::os::unix::process::CommandExt;
        let input = pool.readers().as_fd().try_clone_to_owned().unwrap();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", script]).stdin(input).uid(65534).gid(65534);
        let output = shell.output().expect("/bin/sh starts");
        output.status.success()
    }

    #[test]
    fn mode_0400_stops_another_uid_and_stops_nobody_else() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root to become another uid");
            return;
        }
        let (pool, _) = filled(1);
        assert!(
            as_nobody(&pool, "head -c 4096 >/dev/null"),
            "reading the fd itself works"
        );
        assert!(
            !as_nobody(&pool, "echo x >> /proc/self/fd/0"),
            "re-open for writing"
        );
        assert!(!as_nobody(&pool, "chmod 600 /proc/self/fd/0"), "chmod");
        assert!(
            !as_nobody(&pool, "cat /proc/self/fd/0 >/dev/null"),
            "re-open for reading"
        );
        assert_eq!(pool.read(Slot::new(0)).unwrap(), [0xa5; PAGE_SIZE]);
        // The known hole, shown: with CAP_DAC_OVERRIDE the mode means nothing. Seccomp has to close this one.
        let path = format!("/proc/self/fd/{}", pool.readers().as_raw_fd());
        let writer = File::options().write(true).open(path).unwrap();
        writer.write_all_at(b"evil", 0).unwrap();
        assert_eq!(&pool.read(Slot::new(0)).unwrap()[..4], b"evil");
    }
}
