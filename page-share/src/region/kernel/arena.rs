//! Address space: who owns it, and the calls that map and move it.
#![allow(unsafe_code)]
// UNSAFETY: mmap, mremap and munmap on raw addresses.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use rustix::io::Errno;

use crate::page::PAGE_SIZE;
use crate::region::kernel::ioctl::last;
use crate::region::kernel::span::Span;

/// Who unmaps an arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// Reserved by this crate, between two guard pages.
    Us,
    /// Adopted: the caller keeps it mapped for as long as the arena exists.
    Caller,
}

/// A stretch of address space whose pages this crate may rearrange.
#[derive(Debug)]
pub(crate) struct Arena {
    all: Span,
    owner: Owner,
}

impl Arena {
    /// Reserves `pages` pages of private anonymous memory between PROT_NONE guards, so that it never joins another
    /// mapping; not copied on fork, not dumped, never huge.
    pub(crate) fn reserve(pages: usize) -> Result<Self, Errno> {
        let arena = Self::guarded(pages)?;
        map_anonymous(arena.all)?;
        Ok(arena)
    }

    /// Reserves `pages` pages that cannot be touched before [`Span::open`], between guards. Not even mlockall(2) fills them.
    pub(crate) fn reserve_closed(pages: usize) -> Result<Self, Errno> {
        let arena = Self::guarded(pages)?;
        arena.all.flag_private()?;
        Ok(arena)
    }

    /// `pages` pages of which none can be touched, between two more.
    fn guarded(pages: usize) -> Result<Self, Errno> {
        let len = (pages + 2) * PAGE_SIZE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces none.
        let guard = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        let start = mapped(guard)? + PAGE_SIZE;
        Ok(Self {
            all: Span::of(start, pages),
            owner: Owner::Us,
        })
    }

    /// Maps the first `pages` pages of the file behind `fd`, shared and read-only. Pages past the file's end are not
    /// touched by this crate before the file has grown over them.
    pub(crate) fn view(fd: BorrowedFd<'_>, pages: usize) -> Result<Self, Errno> {
        let arena = Self::reserve(pages)?;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let (start, len, fd) = (
            arena.all.start() as *mut libc::c_void,
            arena.all.len(),
            fd.as_raw_fd(),
        );
        // SAFETY: replaces the empty pages that were reserved a moment ago.
        mapped(unsafe { libc::mmap(start, len, libc::PROT_READ, flags, fd, 0) })?;
        arena.all.advise(&[libc::MADV_DONTFORK, libc::MADV_DONTDUMP])?;
        Ok(arena)
    }

    /// Takes over memory that exists.
    ///
    /// # Safety
    /// `start` is the start of `pages` pages of private anonymous memory that stays mapped for as long
    /// as the arena, that no other code maps, unmaps, moves or advises meanwhile, and into which no Rust reference
    /// points.
    pub(crate) unsafe fn adopt(start: NonNull<u8>, pages: usize) -> Self {
        let start = start.as_ptr() as usize;
        Self {
            all: Span::of(start, pages),
            owner: Owner::Caller,
        }
    }

    /// Unmaps an own arena whose first `used` pages, and only those, were moved away. The hole that they left may hold
    /// other people's mappings by now, so only the rest and the guards' far end are unmapped.
    pub(crate) fn unmap_from(self, used: usize) {
        assert_eq!(self.owner, Owner::Us);
        let start = self.all.start() + used * PAGE_SIZE;
        let len = self.all.end() + PAGE_SIZE - start;
        // SAFETY: the pages from `used` on and the guard after them are still ours, and so is the guard before.
        unsafe {
            libc::munmap(start as *mut _, len);
            libc::munmap((self.all.start() - PAGE_SIZE) as *mut _, PAGE_SIZE);
        }
        std::mem::forget(self);
    }

    /// All of it.
    pub(crate) fn span(&self) -> Span {
        self.all
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.owner == Owner::Us {
            let (start, len) = (self.all.start() - PAGE_SIZE, self.all.len() + 2 * PAGE_SIZE);
            // SAFETY: reserved by us with its guards, and no span outlives its arena's owner.
            unsafe { libc::munmap(start as *mut _, len) };
        }
    }
}

/// Whether everything that this process maps from now on is locked in memory.
pub(crate) fn new_mappings_are_locked() -> Result<bool, Errno> {
    Ok(Arena::reserve(1)?.span().is_locked())
}

/// Maps fresh private anonymous memory over `span` and flags it.
pub(crate) fn map_anonymous(span: Span) -> Result<(), Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    map_over(span, flags, (-1, 0))?;
    span.flag_private()
}

/// Maps `span` copy-on-write from byte `offset` of the file behind `fd`. [`Span::flag_pool`] flags it.
pub(crate) fn map_private(span: Span, fd: BorrowedFd<'_>, offset: u64) -> Result<(), Errno> {
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED;
    map_over(span, flags, (fd.as_raw_fd(), offset as i64))
}

fn map_over(span: Span, flags: i32, (fd, offset): (i32, i64)) -> Result<(), Errno> {
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: replaces only pages of an arena, whose contents the caller has taken or given up.
    mapped(unsafe { libc::mmap(span.start() as *mut _, span.len(), rw, flags, fd, offset) }).map(drop)
}

/// Moves the mapping of `from` over `onto`; the pages of `from` are unmapped afterwards.
///
/// Blocks until the event that it raises on a userfaultfd has been read: never call it from a fault handler.
pub(crate) fn remap(from: Span, onto: Span) -> Result<(), Errno> {
    assert_eq!(from.pages(), onto.pages());
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let (source, target) = (
        from.start() as *mut libc::c_void,
        onto.start() as *mut libc::c_void,
    );
    // SAFETY: both are pages of arenas; `from` is never used again and `onto`'s contents were copied aside.
    mapped(unsafe { libc::mremap(source, from.len(), onto.len(), flags, target) }).map(drop)
}

fn mapped(address: *mut libc::c_void) -> Result<usize, Errno> {
    if address == libc::MAP_FAILED {
        Err(last())
    } else {
        Ok(address as usize)
    }
}
