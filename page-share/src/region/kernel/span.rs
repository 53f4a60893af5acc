//! Pages of this process's address space: how they are copied, compared and sketched while a guest may write them.
//!
//! A [`Span`] can only be cut out of an [`Arena`](super::Arena), and an arena is either reserved here or adopted under
//! the contract of [`Arena::adopt`](super::Arena::adopt). That is what makes the functions of this folder safe to call:
//! whatever they do to a span, they do to memory that this crate may rearrange.
#![allow(unsafe_code)]
// UNSAFETY: reads and writes of bytes that a guest may be writing.

use crate::hash::{PageHasher, Sketch};
use crate::page::{PAGE_SIZE, Page};

/// A run of whole pages inside one [`Arena`](super::Arena).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    start: usize,
    pages: usize,
}

impl Span {
    /// `pages` pages from address `start`: for [`Arena`](super::Arena), which owns them.
    pub(super) const fn of(start: usize, pages: usize) -> Self {
        Self { start, pages }
    }

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
