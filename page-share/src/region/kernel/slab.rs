//! One stretch of memory of our own that gives pages back to the kernel when told: what an allocator keeps for later.
//!
//! Between guard pages, not copied at a fork, not in a core dump: it holds what was in guests.
#![allow(unsafe_code)]
// UNSAFETY: slices into memory that was mapped by hand.

use std::ops::Range;

use crate::page::PAGE_SIZE;
use crate::region::kernel::Arena;

/// Memory, all zeros at first, that takes none before it is written.
#[derive(Debug)]
pub(crate) struct Slab {
    arena: Arena,
}

impl Slab {
    /// Reserves `bytes`, rounded up to whole pages.
    pub(crate) fn reserve(bytes: usize) -> std::io::Result<Self> {
        let arena = Arena::reserve(bytes.div_ceil(PAGE_SIZE).max(1))?;
        Ok(Self { arena })
    }

    /// The bytes of `range`, or `None` when they are not all inside.
    pub(crate) fn get(&self, range: Range<usize>) -> Option<&[u8]> {
        // SAFETY: private anonymous memory that only this value knows of, mapped for as long as it lives; every byte
        // is initialised by the kernel; writes want `&mut self`.
        let all = unsafe {
            std::slice::from_raw_parts(self.arena.span().start() as *const u8, self.arena.span().len())
        };
        all.get(range)
    }

    /// The same, to be written.
    pub(crate) fn get_mut(&mut self, range: Range<usize>) -> Option<&mut [u8]> {
        let span = self.arena.span();
        // SAFETY: as above, and `&mut self` is the only way in.
        let all = unsafe { std::slice::from_raw_parts_mut(span.start() as *mut u8, span.len()) };
        all.get_mut(range)
    }

    /// Gives the memory of some pages back; they are zeros afterwards. Whether the kernel took it.
    pub(crate) fn discard(&mut self, pages: Range<usize>) -> bool {
        let span = self.arena.span().sub(pages.start, pages.len());
        span.discard().is_ok()
    }
}
