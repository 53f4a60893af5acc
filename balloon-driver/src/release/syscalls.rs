//! The system calls that give memory back.
#![allow(unsafe_code)]
// UNSAFETY: madvise and its vectored form change what this process finds at an address; nothing in the standard
// library or rustix offers them as safe calls.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// How many ranges one `process_madvise` takes (`UIO_MAXIOV`).
const MAX_RANGES: usize = 1024;

/// Bytes of a host page.
pub(super) fn page_size() -> u64 {
    // SAFETY: sysconf only reads a constant.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    size.unsigned_abs()
}

/// Drops pages of this process's guest memory, many ranges with one call where the kernel can.
///
/// Linux 6.13 and later let a process give advice of every kind to itself through `process_madvise`, and 6.16
/// flushes the TLB once for the whole list: 256 single pages take one sixth of the time of 256 calls. Older kernels,
/// and system call filters that refuse the call, get one `madvise` per range.
pub(super) struct Dropper {
    /// This process, while the vectored call is worth trying.
    myself: Option<OwnedFd>,
    vector: Vec<libc::iovec>,
}

// SAFETY: the pointers in `vector` are only addresses for the kernel and are replaced before each use.
unsafe impl Send for Dropper {}

impl Dropper {
    pub(super) fn new() -> Self {
        // SAFETY: pidfd_open takes no pointer and returns a new descriptor or an error.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
        // SAFETY: a descriptor that was just returned is open and has no other owner.
        let open = u32::try_from(fd)
            .ok()
            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd.cast_signed()) });
        let mut dropper = Self {
            myself: open,
            vector: Vec::with_capacity(MAX_RANGES),
        };
        // No range at all: an old kernel refuses the advice, a new one has nothing to do.
        dropper.vectored(&[]);
        dropper
    }

    /// One that never tries the vectored call.
    pub(super) fn single() -> Self {
        Self {
            myself: None,
            vector: Vec::new(),
        }
    }

    /// Drops the pages of every range; they read as zero afterwards. Calls `failed` for each range that stayed.
    ///
    /// # Safety
    /// Every range must be page aligned and lie in private anonymous memory that no Rust reference points into.
    pub(super) unsafe fn drop_ranges(
        &mut self,
        ranges: &[Range<usize>],
        mut failed: impl FnMut(&Range<usize>, io::Error),
    ) {
        let mut rest = ranges;
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(rest.len().min(MAX_RANGES));
            if batch.len() < 2 || !self.vectored(batch) {
                for range in batch {
                    // SAFETY: the caller's promise covers this range.
                    if let Err(error) = unsafe { drop_range(range) } {
                        failed(range, error);
                    }
                }
            }
            rest = later;
        }
    }

    /// Tries the vectored call. `false` when some of `ranges` may not have been dropped.
    fn vectored(&mut self, ranges: &[Range<usize>]) -> bool {
        let Some(myself) = &self.myself else { return false };
        self.vector.clear();
        self.vector.extend(ranges.iter().map(|range| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(range.start),
            iov_len: range.len(),
        }));
        let bytes: usize = ranges.iter().map(ExactSizeIterator::len).sum();
        // SAFETY: the vector lives across the call; that its ranges may be dropped is promised to `drop_ranges`.
        let done = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                myself.as_raw_fd(),
                self.vector.as_ptr(),
                self.vector.len(),
                libc::MADV_DONTNEED,
                0,
            )
        };
        if done < 0 && is_refusal(&io::Error::last_os_error()) {
            self.myself = None;
        }
        usize::try_from(done).is_ok_and(|done| done == bytes)
    }
}

/// Whether the kernel refuses the call itself, rather than one of its ranges.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSYS | libc::EPERM | libc::EINVAL | libc::EBADF | libc::ESRCH)
    )
}

/// Drops the pages of one range.
///
/// # Safety
/// As for [`Dropper::drop_ranges`].
unsafe fn drop_range(range: &Range<usize>) -> io::Result<()> {
    let start = std::ptr::without_provenance_mut(range.start);
    // SAFETY: promised by the caller.
    match unsafe { libc::madvise(start, range.len(), libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Punches a hole of `len` bytes at `offset` into `file`: its pages go back to the host and out of every mapping.
pub(super) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let range =
        |value: u64| libc::off_t::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: fallocate takes no pointer; the descriptor is open while `file` is borrowed.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, range(offset)?, range(len)?) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
