//! Address space: arenas of pages, spans inside them, and the calls that map, move, advise, copy and compare them.
//!
//! A [`Span`] can only be cut out of an [`Arena`], and an arena is either reserved here or adopted under the contract
//! of [`Arena::adopt`]. That is what makes the functions of this file and of `userfault.rs` safe to call: whatever
//! they do to a span, they do to memory that this crate may rearrange.
#![allow(unsafe_code)]
// UNSAFETY: mmap, mremap and madvise on raw addresses, and reads of bytes that a guest may be writing.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::io::Errno;

use crate::hash::{PageHasher, Sketch};
#[cfg(feature = "vm-memory")]
use crate::page::PAGE_SHIFT;
use crate::page::{Gfn, PAGE_SIZE, Page};
use crate::region::guest::layout::{Keep, MemoryRange};

/// Pages in a huge page, 2 MiB.
pub(crate) const HUGE_PAGES: u32 = 512;

/// A run of whole pages inside one [`Arena`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    start: usize,
    pages: usize,
}

impl Span {
    /// Address of the first byte.
    pub(crate) fn start(self) -> usize {
        self.start
    }

    /// Address after the last byte.
    pub(crate) fn end(self) -> usize {
        self.start + self.len()
    }

    /// Bytes.
    pub(crate) fn len(self) -> usize {
        self.pages * PAGE_SIZE
    }

    /// Pages.
    pub(crate) fn pages(self) -> usize {
        self.pages
    }

    /// The `count` pages from page `first` of this span.
    ///
    /// # Panics
    /// When they are not all inside the span: our bug.
    pub(crate) fn sub(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.pages, "{first}+{count} pages of {self:?}");
        Self {
            start: self.start + first * PAGE_SIZE,
            pages: count,
        }
    }

    /// Copies page `index` out. Whatever a guest does meanwhile, the copy is some mix of bytes it wrote.
    ///
    /// Waits in a fault when the page is held by the engine, so never call it for a page in transit.
    pub(crate) fn copy_out(self, index: usize, page: &mut Page) {
        let from = self.sub(index, 1).start;
        // SAFETY: the page is readable memory of an arena and `page` is 4096 writable bytes of ours. The copy is done
        // by an instruction the compiler knows nothing about, so that concurrent writes by a guest are harmless.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!(
                "rep movsb",
                inout("rcx") PAGE_SIZE => _,
                inout("rsi") from => _,
                inout("rdi") page.as_mut_ptr() => _,
                options(nostack, preserves_flags)
            );
        }
        #[cfg(not(target_arch = "x86_64"))]
        for (offset, byte) in page.iter_mut().enumerate() {
            // SAFETY: as above; volatile, because a guest may write meanwhile.
            *byte = unsafe { std::ptr::read_volatile((from + offset) as *const u8) };
        }
    }

    /// Writes `page` over page `index`. For arenas of our own only (the caller's rule, not a matter of safety: a
    /// guest's memory is bytes that the guest may change at any time).
    pub(crate) fn copy_in(self, index: usize, page: &Page) {
        let to = self.sub(index, 1).start;
        // SAFETY: the page is writable memory of an arena, `page` is 4096 readable bytes, and the two cannot overlap
        // because no Rust reference ever points into an arena.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!(
                "rep movsb",
                inout("rcx") PAGE_SIZE => _,
                inout("rsi") page.as_ptr() => _,
                inout("rdi") to => _,
                options(nostack, preserves_flags)
            );
        }
        #[cfg(not(target_arch = "x86_64"))]
        for (offset, byte) in page.iter().enumerate() {
            // SAFETY: as above; volatile, because others may read meanwhile.
            unsafe { std::ptr::write_volatile((to + offset) as *mut u8, *byte) };
        }
    }

    /// Whether page `index` here equals page `other_index` of `other`, all 4096 bytes.
    pub(crate) fn page_equals(self, index: usize, other: Self, other_index: usize) -> bool {
        let (a, b) = (self.sub(index, 1).start, other.sub(other_index, 1).start);
        // SAFETY: both are 4096 readable bytes of arenas; the comparison happens behind a call that the compiler
        // cannot see into, so a page that another thread changes meanwhile gives an answer, not undefined behaviour.
        unsafe { libc::memcmp(a as *const _, b as *const _, PAGE_SIZE) == 0 }
    }

    /// Asks for the beginning of page `index`, which will be read soon: the hardware's own look ahead ends with the page
    /// before, and goes on by itself once it has seen a few lines.
    pub(crate) fn prefetch(self, index: usize) {
        let start = self.sub(index, 1).start;
        for line in 0..LINES_AHEAD {
            prefetch(start + line * 64);
        }
    }

    /// Whether page `index` is all zeros.
    pub(crate) fn page_is_zero(self, index: usize) -> bool {
        static ZEROS: Page = [0; PAGE_SIZE];
        let at = self.sub(index, 1).start;
        // SAFETY: as in `page_equals`.
        unsafe { libc::memcmp(at as *const _, ZEROS.as_ptr().cast(), PAGE_SIZE) == 0 }
    }

    /// Reads the 8 bytes at `offset`, which must be a multiple of 8.
    pub(crate) fn load(self, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.len());
        // SAFETY: aligned and inside the arena; volatile, because a guest may write meanwhile.
        unsafe { std::ptr::read_volatile((self.start + offset) as *const u64) }
    }

    /// Writes the 8 bytes at `offset`, which must be a multiple of 8.
    pub(crate) fn store(self, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.len());
        // SAFETY: aligned and inside the arena; volatile, because others may read meanwhile.
        unsafe { std::ptr::write_volatile((self.start + offset) as *mut u64, value) }
    }
}

impl std::fmt::Debug for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}+{} pages", self.start, self.pages)
    }
}

/// The sketches of single pages as they are just now, read in place and side by side. Meanwhile the pages of `next`, which
/// will be read soon, are brought nearer: the hardware's own look ahead ends with the page.
///
/// A page that another thread writes meanwhile gives some sketch. Waits in a fault as [`Span::copy_out`] does.
pub(crate) fn sketches<const N: usize>(
    pages: [Span; N],
    next: [Span; N],
    hasher: &PageHasher,
) -> [Sketch; N] {
    let (from, ahead) = (
        pages.map(|page| page.sub(0, 1).start),
        next.map(|page| page.sub(0, 1).start),
    );
    hasher.sketches(|page, word| {
        if word.is_multiple_of(8) {
            prefetch(ahead[page] + word * 8);
        }
        // SAFETY: aligned and inside a readable page of an arena; volatile, because a guest may write meanwhile.
        u64::from_le(unsafe { std::ptr::read_volatile((from[page] + word * 8) as *const u64) })
    })
}

/// Lines of a page that [`Span::prefetch`] asks for.
const LINES_AHEAD: usize = 8;

/// Asks for the cache line at `address`.
fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it reads nothing that the program could see and cannot fail.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address as *const i8);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

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
        let len = (pages + 2) * PAGE_SIZE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces none.
        let guard = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        let start = mapped(guard)? + PAGE_SIZE;
        let arena = Self {
            all: Span { start, pages },
            owner: Owner::Us,
        };
        map_anonymous(arena.all)?;
        Ok(arena)
    }

    /// Reserves `pages` pages that cannot be touched before [`Span::open`], between guards. Not even mlockall(2) fills them.
    pub(crate) fn reserve_closed(pages: usize) -> Result<Self, Errno> {
        let len = (pages + 2) * PAGE_SIZE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces none.
        let guard = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        let start = mapped(guard)? + PAGE_SIZE;
        let arena = Self {
            all: Span { start, pages },
            owner: Owner::Us,
        };
        arena.all.flag_private()?;
        Ok(arena)
    }

    /// Maps the first `pages` pages of the file behind `fd`, shared and read-only. Pages past the file's end are not
    /// touched by this crate before the file has grown over them.
    pub(crate) fn view(fd: BorrowedFd<'_>, pages: usize) -> Result<Self, Errno> {
        let arena = Self::reserve(pages)?;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let (start, len, fd) = (
            arena.all.start as *mut libc::c_void,
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
            all: Span { start, pages },
            owner: Owner::Caller,
        }
    }

    /// Unmaps an own arena whose first `used` pages, and only those, were moved away. The hole that they left may hold
    /// other people's mappings by now, so only the rest and the guards' far end are unmapped.
    pub(crate) fn unmap_from(self, used: usize) {
        assert_eq!(self.owner, Owner::Us);
        let start = self.all.start + used * PAGE_SIZE;
        let len = self.all.end() + PAGE_SIZE - start;
        // SAFETY: the pages from `used` on and the guard after them are still ours, and so is the guard before.
        unsafe {
            libc::munmap(start as *mut _, len);
            libc::munmap((self.all.start - PAGE_SIZE) as *mut _, PAGE_SIZE);
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
            let (start, len) = (self.all.start - PAGE_SIZE, self.all.len() + 2 * PAGE_SIZE);
            // SAFETY: reserved by us with its guards, and no span outlives its arena's owner.
            unsafe { libc::munmap(start as *mut _, len) };
        }
    }
}

/// MADV_DONTNEED_LOCKED of asm-generic/mman-common.h, Linux 5.18.
const MADV_DONTNEED_LOCKED: i32 = 24;

/// Whether everything that this process maps from now on is locked in memory.
pub(crate) fn new_mappings_are_locked() -> Result<bool, Errno> {
    Ok(Arena::reserve(1)?.span().is_locked())
}

impl Span {
    /// madvise(2) with each of `advice`.
    fn advise(self, advice: &[i32]) -> Result<(), Errno> {
        for &advice in advice {
            // SAFETY: only advice that changes flags or drops contents of memory that is ours to rearrange.
            if unsafe { libc::madvise(self.start as *mut _, self.len(), advice) } != 0 {
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

    /// Makes pages of [`Arena::reserve_closed`] like any others, and not locked: moving a locked mapping fills it.
    pub(crate) fn open(self) -> Result<(), Errno> {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: pages of an arena of ours; no other code relies on less access to them or on a lock.
        let done = unsafe {
            libc::mprotect(self.start as *mut _, self.len(), rw) == 0
                && libc::munlock(self.start as *const _, self.len()) == 0
        };
        if done { Ok(()) } else { Err(last()) }
    }

    /// Whether every page is in some mapping.
    pub(crate) fn is_mapped(self) -> bool {
        // SAFETY: MS_ASYNC does nothing but look whether the addresses are mapped.
        unsafe { libc::msync(self.start as *mut _, self.len(), libc::MS_ASYNC) == 0 }
    }

    /// Has the kernel copy the pages that are copy-on-write mappings, and changes none of their bytes, whatever others
    /// write meanwhile.
    pub(crate) fn break_copies(self) {
        for index in 0..self.pages {
            let at = self.sub(index, 1).start as *const std::sync::atomic::AtomicU64;
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
    mapped(unsafe { libc::mmap(span.start as *mut _, span.len(), rw, flags, fd, offset) }).map(drop)
}

/// Moves the mapping of `from` over `onto`; the pages of `from` are unmapped afterwards.
///
/// Blocks until the event that it raises on a userfaultfd has been read: never call it from a fault handler.
pub(crate) fn remap(from: Span, onto: Span) -> Result<(), Errno> {
    assert_eq!(from.pages, onto.pages);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let (source, target) = (from.start as *mut libc::c_void, onto.start as *mut libc::c_void);
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

/// The calling thread's error number.
pub(crate) fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// CPU time that the calling thread has used, user and system.
pub(crate) fn thread_cpu() -> std::time::Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    std::time::Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

impl MemoryRange {
    /// Offers memory that exists to a region: `pages` pages at `host`, guest page numbers from `first` on.
    ///
    /// # Safety
    /// `host` is the start of that many pages of private anonymous memory, readable and writable, best mapped with
    /// MAP_NORESERVE. It stays mapped for as long as this value and any region that adopts it; no other code maps, unmaps,
    /// moves, locks or advises it meanwhile; and no Rust reference points into it. [`Region::adopt`](crate::Region::adopt)
    /// refuses what it can see is not so.
    pub unsafe fn adopt(first: Gfn, host: NonNull<u8>, pages: u32) -> Self {
        // SAFETY: the caller's promise is the one that is asked for.
        let arena = unsafe { Arena::adopt(host, pages as usize) };
        Self {
            first,
            arena,
            keep: None,
        }
    }
}

/// Private anonymous memory that this crate mapped itself: a guest's memory without a VMM, for tests and tools.
///
/// All access goes through copies; it gives out no reference, so a region may rearrange it at any time.
#[derive(Debug, Clone)]
pub struct AnonymousMemory {
    arena: Arc<Arena>,
}

impl AnonymousMemory {
    /// Maps `pages` pages of zeros.
    ///
    /// # Errors
    /// When the kernel refuses the mapping.
    pub fn new(pages: u32) -> std::io::Result<Self> {
        // A huge page's multiple at the front, so that the memory can be aligned to one.
        let spare = HUGE_PAGES as usize;
        let arena = Arena::reserve(pages as usize + spare)?;
        Ok(Self {
            arena: Arc::new(arena),
        })
    }

    fn usable(&self) -> Span {
        let all = self.arena.span();
        let huge = HUGE_PAGES as usize * PAGE_SIZE;
        let skip = (all.start().next_multiple_of(huge) - all.start()) / PAGE_SIZE;
        all.sub(skip, all.pages() - HUGE_PAGES as usize)
    }

    /// Pages.
    pub fn pages(&self) -> u32 {
        self.usable().pages() as u32
    }

    /// The address of the first byte, for KVM and other users of raw addresses. 2 MiB aligned.
    pub fn address(&self) -> usize {
        self.usable().start()
    }

    /// This memory as a range for a region, numbered from page `first` on.
    pub fn range(&self, first: Gfn) -> MemoryRange {
        let span = self.usable();
        let start = NonNull::new(span.start as *mut u8).expect("a mapping is never at address 0");
        // SAFETY: private anonymous memory; `keep` holds the mapping; only a region rearranges it.
        let mut range = unsafe { MemoryRange::adopt(first, start, span.pages() as u32) };
        range.keep = Some(Keep(self.arena.clone()));
        range
    }

    /// Copies page `page` out.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn read_page(&self, page: u32) -> Page {
        let mut copy = [0; PAGE_SIZE];
        self.usable().copy_out(page as usize, &mut copy);
        copy
    }

    /// Overwrites page `page`.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn write_page(&self, page: u32, bytes: &Page) {
        self.usable().copy_in(page as usize, bytes);
    }

    /// Reads the 8 bytes at `offset`.
    ///
    /// # Panics
    /// When `offset` is not a multiple of 8 inside the memory.
    pub fn load(&self, offset: usize) -> u64 {
        self.usable().load(offset)
    }

    /// Writes the 8 bytes at `offset`.
    ///
    /// # Panics
    /// When `offset` is not a multiple of 8 inside the memory.
    pub fn store(&self, offset: usize, value: u64) {
        self.usable().store(offset, value);
    }
}

#[cfg(feature = "vm-memory")]
mod vm_memory_ranges {
    use std::sync::Arc;

    use vm_memory::bitmap::Bitmap;
    use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

    use super::{Gfn, Keep, MemoryRange, NonNull, PAGE_SHIFT, PAGE_SIZE};

    impl MemoryRange {
        /// A range from one of vm-memory's regions, kept mapped for as long as a region uses it.
        ///
        /// `None` when it is not whole pages of anonymous memory below 16 TiB.
        pub fn from_vm_memory<B: Bitmap + Send + Sync + 'static>(
            region: &GuestRegionMmap<B>,
        ) -> Option<Self> {
            let (start, bytes) = (region.start_addr().0, region.size());
            let whole = start.is_multiple_of(PAGE_SIZE as u64) && bytes.is_multiple_of(PAGE_SIZE);
            if !whole || region.file_offset().is_some() {
                return None;
            }
            let first = Gfn::new(u32::try_from(start >> PAGE_SHIFT).ok()?);
            let pages = u32::try_from(bytes / PAGE_SIZE).ok()?;
            let mapping = region.get_mmap();
            // SAFETY: vm-memory maps private anonymous memory here, gives out volatile slices and no references, and
            // `keep` holds the mapping.
            let mut range = unsafe { Self::adopt(first, NonNull::new(mapping.as_ptr())?, pages) };
            range.keep = Some(Keep(Arc::new(mapping)));
            Some(range)
        }

        /// All ranges of a guest's memory; `None` when one of them cannot be adopted.
        pub fn all_of_vm_memory<B>(memory: &GuestMemoryMmap<B>) -> Option<Vec<Self>>
        where
            B: vm_memory::bitmap::NewBitmap + Send + Sync + 'static,
        {
            memory.iter().map(|region| Self::from_vm_memory(region)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_equal_only_if_every_byte_is() {
        let memory = AnonymousMemory::new(2).unwrap();
        let span = memory.usable();
        let (one, other) = (span.sub(0, 1), span.sub(1, 1));
        let page: Page = std::array::from_fn(|byte| (byte % 251) as u8 + 1);
        memory.write_page(0, &page);
        for byte in 0..PAGE_SIZE {
            let mut changed = page;
            changed[byte] ^= 0x80;
            memory.write_page(1, &changed);
            assert!(!one.page_equals(0, other, 0), "byte {byte}");
            let mut zeros = [0; PAGE_SIZE];
            zeros[byte] = 1;
            memory.write_page(1, &zeros);
            assert!(!other.page_is_zero(0), "byte {byte}");
        }
        memory.write_page(1, &page);
        assert!(one.page_equals(0, other, 0));
        memory.write_page(1, &[0; PAGE_SIZE]);
        assert!(other.page_is_zero(0));
    }

    #[test]
    fn copies_are_broken_without_a_change() {
        let memory = AnonymousMemory::new(3).unwrap();
        let page: Page = std::array::from_fn(|byte| (byte % 251) as u8);
        (0..3).for_each(|at| memory.write_page(at, &page));
        memory.usable().break_copies();
        (0..3).for_each(|at| assert_eq!(memory.read_page(at), page));
    }
}
