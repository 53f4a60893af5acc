//! Memory that can become a guest's: any that a VMM has mapped, vm-memory's, or this crate's own.
#![allow(unsafe_code)]
// UNSAFETY: takes over mappings under the caller's promise.

use std::ptr::NonNull;
use std::sync::Arc;

#[cfg(feature = "vm-memory")]
use crate::page::PAGE_SHIFT;
use crate::page::{Gfn, PAGE_SIZE, Page};
use crate::region::guest::layout::{Keep, MemoryRange};
use crate::region::kernel::{Arena, HUGE_PAGES, Span};

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
        let start = NonNull::new(span.start() as *mut u8).expect("a mapping is never at address 0");
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
