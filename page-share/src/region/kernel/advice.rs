//! What the kernel is told about pages: flags, contents to drop, huge pages to build.
#![allow(unsafe_code)]
// UNSAFETY: madvise, mprotect and msync on raw addresses.

use rustix::io::Errno;

use crate::region::kernel::ioctl::last;
use crate::region::kernel::span::Span;

/// MADV_DONTNEED_LOCKED of asm-generic/mman-common.h, Linux 5.18.
const MADV_DONTNEED_LOCKED: i32 = 24;

impl Span {
    /// madvise(2) with each of `advice`.
    pub(super) fn advise(self, advice: &[i32]) -> Result<(), Errno> {
        for &advice in advice {
            // SAFETY: only advice that changes flags or drops contents of memory that is ours to rearrange.
            if unsafe { libc::madvise(self.start() as *mut _, self.len(), advice) } != 0 {
                return Err(last());
            }
        }
        Ok(())
    }

    /// Gives the memory the flags that all memory of one region shares, or VMAs never join again.
    pub(crate) fn flag_private(self) -> Result<(), Errno> {
        match self.advise(&[libc::MADV_DONTFORK, libc::MADV_DONTDUMP, libc::MADV_NOHUGEPAGE]) {
            // A kernel without huge pages knows no such advice.
            Err(Errno::INVAL) => self.advise(&[libc::MADV_DONTFORK, libc::MADV_DONTDUMP]),
            other => other,
        }
    }

    /// Gives pool mappings the flags that all of them share.
    pub(crate) fn flag_pool(self) -> Result<(), Errno> {
        self.advise(&[libc::MADV_DONTFORK, libc::MADV_DONTDUMP])
    }

    /// Lets the kernel back the memory with huge pages.
    pub(crate) fn flag_huge(self) -> Result<(), Errno> {
        self.advise(&[libc::MADV_DONTFORK, libc::MADV_DONTDUMP, libc::MADV_HUGEPAGE])
    }

    /// Drops the contents, locked or not: what was anonymous is empty afterwards.
    pub(crate) fn discard(self) -> Result<(), Errno> {
        match self.advise(&[libc::MADV_DONTNEED]) {
            Err(Errno::INVAL) => self.advise(&[MADV_DONTNEED_LOCKED]),
            other => other,
        }
    }

    /// Makes pages of [`Arena::reserve_closed`](super::Arena::reserve_closed) like any others, and not locked: moving a locked mapping fills it.
    pub(crate) fn open(self) -> Result<(), Errno> {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: pages of an arena of ours; no other code relies on less access to them or on a lock.
        let done = unsafe {
            libc::mprotect(self.start() as *mut _, self.len(), rw) == 0
                && libc::munlock(self.start() as *const _, self.len()) == 0
        };
        if done { Ok(()) } else { Err(last()) }
    }

    /// Whether every page is in some mapping.
    pub(crate) fn is_mapped(self) -> bool {
        // SAFETY: MS_ASYNC does nothing but look whether the addresses are mapped.
        unsafe { libc::msync(self.start() as *mut _, self.len(), libc::MS_ASYNC) == 0 }
    }

    /// Has the kernel copy the pages that are copy-on-write mappings, and changes none of their bytes, whatever others
    /// write meanwhile.
    pub(crate) fn break_copies(self) {
        for index in 0..self.pages() {
            let at = self.sub(index, 1).start() as *const std::sync::atomic::AtomicU64;
            // SAFETY: aligned and inside an arena; an atomic access, harmless while a guest makes its own. The compiler
            // does not know that nothing is added, so the write is made.
            unsafe { (*at).fetch_add(std::hint::black_box(0), std::sync::atomic::Ordering::SeqCst) };
        }
    }

    /// Whether the mapping that the first page is in is locked in memory.
    pub(crate) fn is_locked(self) -> bool {
        // Advice about the order of reclaim, which locked memory refuses; one page of it changes nothing.
        self.sub(0, 1).advise(&[libc::MADV_COLD]) == Err(Errno::INVAL)
    }

    /// Joins 512 present pages into one huge page, if the kernel can.
    pub(crate) fn collapse(self) -> Result<(), Errno> {
        self.advise(&[libc::MADV_COLLAPSE])
    }
}
