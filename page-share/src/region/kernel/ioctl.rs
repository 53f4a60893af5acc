//! How an ioctl is asked for, and what it answers.
#![allow(unsafe_code)]
// UNSAFETY: passes on a caller's structure to the kernel.

use std::os::fd::{AsRawFd, OwnedFd};

use linux_raw_sys::general as sys;
use rustix::io::Errno;

pub(super) const fn request(direction: u32, kind: u32, number: u32, size: usize) -> libc::c_ulong {
    (direction as libc::c_ulong) << 30
        | (size as libc::c_ulong) << 16
        | (kind as libc::c_ulong) << 8
        | number as libc::c_ulong
}

pub(super) const fn iowr<T>(number: u32) -> libc::c_ulong {
    request(3, sys::UFFDIO, number, size_of::<T>())
}

pub(super) const fn ior<T>(number: u32) -> libc::c_ulong {
    request(2, sys::UFFDIO, number, size_of::<T>())
}

/// # Safety
/// `arg` must be the structure that `call` expects.
pub(super) unsafe fn ioctl<T>(fd: &OwnedFd, call: libc::c_ulong, arg: *mut T) -> Result<(), Errno> {
    // SAFETY: passed on to the caller.
    if unsafe { libc::ioctl(fd.as_raw_fd(), call, arg) } < 0 {
        Err(last())
    } else {
        Ok(())
    }
}

/// The calling thread's error number.
pub(super) fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
