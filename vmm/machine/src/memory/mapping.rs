//! One range of guest RAM in this process's address space, aligned for huge pages.
//!
//! The kernel places a mapping at the start of a 2 MiB block only where its length is whole blocks, if at all. A guest's
//! memory must lie in blocks as its frames do whatever its size is: else no block can be a huge page, and the engine
//! refuses to manage it. So address space for two blocks more is reserved, and the memory put in the middle of it. What
//! is left before and behind can be neither read nor written: no other mapping ever joins the guest's.
#![allow(unsafe_code)]
// UNSAFETY: mmap and munmap of address space that nothing else knows of.

use std::io;
use std::ptr::null_mut;
use std::sync::Arc;

use vm_memory::mmap::MmapRegion;

/// The size and the alignment of a huge page.
const BLOCK: usize = 2 << 20;

/// What RAM is mapped as.
const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Private anonymous memory at the start of a 2 MiB block, between guards. Unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    /// Start of the address space that was reserved.
    reserved: usize,
    /// Bytes between the guards.
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes, a positive multiple of 4096.
    ///
    /// # Errors
    /// When the process has no address space for that, or the kernel refuses so much memory.
    pub(super) fn new(len: usize) -> io::Result<Arc<Self>> {
        let all = len.checked_add(2 * BLOCK).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let reserved = unsafe { libc::mmap(null_mut(), all, libc::PROT_NONE, FLAGS, -1, 0) };
        let mapping = Self {
            reserved: mapped(reserved)?,
            len,
        };
        let (at, flags) = (mapping.start(), FLAGS | libc::MAP_FIXED);
        // SAFETY: replaces a part of what was reserved a moment ago.
        mapped(unsafe { libc::mmap(at.cast(), len, READ_WRITE, flags, -1, 0) })?;
        Ok(Arc::new(mapping))
    }

    /// The first byte.
    fn start(&self) -> *mut u8 {
        // A page at least stays in front, as the guard.
        let at = (self.reserved + 1).next_multiple_of(BLOCK);
        std::ptr::with_exposed_provenance_mut(at)
    }

    /// The memory as vm-memory has it, which does not own it: this mapping must outlive that.
    pub(super) fn region(&self) -> Result<MmapRegion, vm_memory::mmap::MmapRegionError> {
        // SAFETY: that memory is mapped so; `GuestRam` and whatever manages the pages keep it for as long as they use it.
        unsafe { MmapRegion::build_raw(self.start(), self.len, READ_WRITE, FLAGS) }
    }
}

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: ours from `reserved` on, guards included, and every user holds this mapping.
        unsafe { libc::munmap(self.reserved as *mut libc::c_void, self.len + 2 * BLOCK) };
    }
}

fn mapped(address: *mut libc::c_void) -> io::Result<usize> {
    match address {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        address => Ok(address.expose_provenance()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_any_size_starts_with_a_block_between_guards() {
        // Whatever the kernel would align by itself, odd sizes and neighbours get it out of step.
        let sizes = [
            4096,
            1 << 20,
            (1 << 20) + 4096,
            BLOCK,
            BLOCK + 4096,
            3 * BLOCK - 4096,
            513 << 20,
        ];
        let mappings: Vec<_> = sizes.iter().map(|&len| Mapping::new(len).unwrap()).collect();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        for (mapping, len) in mappings.iter().zip(sizes) {
            let start = mapping.start() as usize;
            assert!(start.is_multiple_of(BLOCK), "{start:#x} of {len} bytes");
            let alone = format!("{start:x}-{:x} rw-p", start + len);
            assert!(maps.contains(&alone), "{alone} is not in\n{maps}");
        }
    }

    #[test]
    fn more_than_there_is_of_addresses_is_an_error() {
        for len in [usize::MAX, usize::MAX - BLOCK, 1 << 50] {
            assert!(Mapping::new(len & !4095).is_err(), "{len}");
        }
    }

    #[test]
    fn what_is_dropped_is_unmapped_guards_and_all() {
        let mapping = Mapping::new(1 << 20).unwrap();
        let reserved = format!("{:x}-", mapping.reserved);
        let is_there = || {
            std::fs::read_to_string("/proc/self/maps")
                .unwrap()
                .contains(&reserved)
        };
        assert!(is_there());
        drop(mapping);
        assert!(!is_there());
    }
}
