//! Plain anonymous memory that a guest can run on.
#![allow(unsafe_code)]
// UNSAFETY: maps, marks and unmaps the memory itself, and copies pages in and out of it while a guest may run.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, PAGE};

/// Private anonymous memory: no huge pages, not inherited by a fork, not dumped.
#[derive(Debug)]
pub struct Memory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and is only reached through atomic accesses.
unsafe impl Send for Memory {}
// SAFETY: as above; concurrent accesses are atomic word by word.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `len` bytes, rounded up to whole pages; they read as zeros.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn anonymous(len: usize) -> Result<Self, Error> {
        Self::map(len, "guest memory")
    }

    pub(crate) fn map(len: usize, what: &'static str) -> Result<Self, Error> {
        let len = len.next_multiple_of(PAGE);
        let failed = || Error::Map {
            what,
            bytes: len,
            source: io::Error::last_os_error(),
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(failed());
        }
        for advice in [libc::MADV_NOHUGEPAGE, libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
            // SAFETY: the range is the mapping just made; none of these advices changes its contents. A kernel
            // without one of them refuses, which costs nothing but the advice.
            unsafe { libc::madvise(start, len, advice) };
        }
        let start = NonNull::new(start.cast()).expect("mmap returned null for a mapping it made");
        Ok(Self { start, len })
    }

    /// The first byte.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads the word at `offset` (bytes, a multiple of 8).
    ///
    /// # Panics
    /// When the word is not inside the memory or not aligned.
    pub fn read(&self, offset: usize) -> u64 {
        self.word(offset).load(Ordering::Relaxed)
    }

    /// Writes the word at `offset` (bytes, a multiple of 8).
    ///
    /// # Panics
    /// When the word is not inside the memory or not aligned.
    pub fn write(&self, offset: usize, value: u64) {
        self.word(offset).store(value, Ordering::Relaxed);
    }

    /// Writes `bytes` from `offset` on (bytes, a multiple of 8); a last incomplete word is filled with zeros.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) {
        for (i, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write(offset + 8 * i, u64::from_ne_bytes(word));
        }
    }

    /// The word at `offset`, for accesses that race with a guest.
    pub(crate) fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(
            offset.is_multiple_of(8) && offset < self.len,
            "no aligned word at offset {offset:#x} of {:#x} bytes",
            self.len
        );
        // SAFETY: inside the mapping (len is a multiple of 8), aligned, lives as long as self, only reached atomically.
        unsafe { &*self.start.as_ptr().add(offset).cast::<AtomicU64>() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
