//! /proc/self/pagemap: which pages are there, which were written, and which the kernel has copied.
#![allow(unsafe_code)]
// UNSAFETY: PAGEMAP_SCAN, a raw ioctl that passes a structure of addresses to the kernel.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use linux_raw_sys::general as sys;
use rustix::io::Errno;

use crate::page::PAGE_SIZE;
use crate::region::error::fatal;
use crate::region::kernel::ioctl::{last, request};
use crate::region::kernel::span::Span;

/// Runs that one call answers with at most.
const ROOM: usize = 1024;

/// Between two tries of what the kernel has no memory for.
const PAUSE: Duration = Duration::from_micros(50);

/// What a scan looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Present pages of guest memory that were written since they were armed.
    Written,
    /// The same, and arms them again in the same step. Drops KVM's mappings of the whole span: only for spans that
    /// [`Look::Written`] found.
    WrittenAndArm,
    /// Pages of pool mappings that the kernel has copied on write.
    Broken,
    /// Copied pages of pool mappings that the kernel has swapped out.
    BrokenSwapped,
    /// Pages that exist, present or swapped out by the kernel.
    Populated,
}

/// A run that a scan found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// Address of the first byte.
    pub(crate) start: usize,
    /// Address after the last byte.
    pub(crate) end: usize,
    /// The pages are mappings of the kernel's zero page.
    pub(crate) zero: bool,
}

/// The pagemap of this process.
#[derive(Debug)]
pub(crate) struct Pagemap(File);

impl Pagemap {
    /// Opens it.
    pub(crate) fn open() -> std::io::Result<Self> {
        Ok(Self(File::open("/proc/self/pagemap")?))
    }

    /// Appends to `found` what `look` finds in `span`, in address order.
    pub(crate) fn scan(&self, span: Span, look: Look, found: &mut Vec<Found>) -> Result<(), Errno> {
        let mut room = [const { MaybeUninit::uninit() }; ROOM];
        let mut from = span.start() as u64;
        while from < span.end() as u64 {
            let (count, walked) = self.scan_once(from, span.end() as u64, look, &mut room)?;
            found.extend(room[..count].iter().map(|region| {
                // SAFETY: the kernel has filled this many.
                let region = unsafe { region.assume_init() };
                Found {
                    start: region.start as usize,
                    end: region.end as usize,
                    zero: region.categories & u64::from(sys::PAGE_IS_PFNZERO) != 0,
                }
            }));
            from = walked;
        }
        Ok(())
    }

    fn scan_once(
        &self,
        start: u64,
        end: u64,
        look: Look,
        room: &mut [MaybeUninit<sys::page_region>],
    ) -> Result<(usize, u64), Errno> {
        let (mask, anyof, inverted, returned) = masks(look);
        let mut arg = sys::pm_scan_arg {
            size: size_of::<sys::pm_scan_arg>() as u64,
            flags: if look == Look::WrittenAndArm {
                u64::from(sys::PM_SCAN_WP_MATCHING)
            } else {
                0
            },
            start,
            end,
            walk_end: 0,
            vec: room.as_mut_ptr() as u64,
            vec_len: room.len() as u64,
            max_pages: 0,
            category_inverted: inverted,
            category_mask: mask,
            category_anyof_mask: anyof,
            return_mask: returned,
        };
        let call = request(3, u32::from(b'f'), 16, size_of::<sys::pm_scan_arg>());
        // SAFETY: the vector is as long as said and outlives the call; arming only records writes.
        let count = unsafe { libc::ioctl(self.0.as_raw_fd(), call, &raw mut arg) };
        if count < 0 {
            return Err(last());
        }
        Ok((count as usize, arg.walk_end))
    }

    /// Whether there is anything behind the page that `page` is, in memory or in the host's swap.
    pub(crate) fn is_populated(&self, page: Span) -> bool {
        let mut entry = [0; 8];
        self.read_pagemap(page, &mut entry);
        is_populated(entry)
    }

    /// The same for each page of `span`.
    pub(crate) fn populated(&self, span: Span) -> Vec<bool> {
        let mut entries = vec![[0; 8]; span.pages()];
        self.read_pagemap(span, entries.as_flattened_mut());
        entries.into_iter().map(is_populated).collect()
    }

    /// For each page of `span`, whether the kernel has a copy of it in the host's swap. A page of a pool that was
    /// write-protected and then dropped from memory leaves a marker that looks like one, but for its protection.
    pub(crate) fn swapped_copies(&self, span: Span) -> Vec<bool> {
        let mut entries = vec![[0; 8]; span.pages()];
        self.read_pagemap(span, entries.as_flattened_mut());
        let entries = entries.into_iter().map(u64::from_le_bytes);
        entries
            .map(|entry| entry & (SWAPPED | PROTECTED) == SWAPPED)
            .collect()
    }

    /// One entry of 8 bytes for each page of `span`.
    fn read_pagemap(&self, span: Span, entries: &mut [u8]) {
        let offset = (span.start() / PAGE_SIZE * 8) as u64;
        while let Err(error) = self.0.read_exact_at(entries, offset) {
            if error.raw_os_error() != Some(libc::ENOMEM) {
                fatal(format_args!("/proc/self/pagemap cannot be read: {error}"));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// category_mask, category_anyof_mask, category_inverted and return_mask of a look.
fn masks(look: Look) -> (u64, u64, u64, u64) {
    let bits = |categories: &[u32]| categories.iter().fold(0, |all, &one| all | u64::from(one));
    let outside = bits(&[sys::PAGE_IS_FILE, sys::PAGE_IS_WPALLOWED]);
    match look {
        Look::Written | Look::WrittenAndArm => (
            bits(&[sys::PAGE_IS_PRESENT, sys::PAGE_IS_WRITTEN, sys::PAGE_IS_WPALLOWED]),
            0,
            0,
            bits(&[sys::PAGE_IS_WRITTEN, sys::PAGE_IS_PFNZERO]),
        ),
        Look::Broken => (
            outside | bits(&[sys::PAGE_IS_PRESENT]),
            0,
            outside,
            bits(&[sys::PAGE_IS_PRESENT]),
        ),
        Look::BrokenSwapped => (
            outside | bits(&[sys::PAGE_IS_SWAPPED]),
            0,
            outside,
            bits(&[sys::PAGE_IS_SWAPPED]),
        ),
        Look::Populated => (
            0,
            bits(&[sys::PAGE_IS_PRESENT, sys::PAGE_IS_SWAPPED]),
            0,
            bits(&[sys::PAGE_IS_PFNZERO]),
        ),
    }
}

/// Bits of an entry of /proc/self/pagemap: in the host's swap; write-protected by a userfaultfd.
const SWAPPED: u64 = 1 << 62;
const PROTECTED: u64 = 1 << 57;

/// Bits 63 and 62 of an entry of /proc/self/pagemap: present, swapped.
fn is_populated(entry: [u8; 8]) -> bool {
    u64::from_le_bytes(entry) >> 62 != 0
}
