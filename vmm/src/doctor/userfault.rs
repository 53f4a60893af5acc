//! Which parts of userfaultfd this kernel has and this user may use.

// UNSAFETY: userfaultfd has no safe interface: one system call and two ioctls.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `_IOWR(0xAA, 0x3F, struct uffdio_api)` of linux/userfaultfd.h.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IO(0xAA, 0x00)`: a new userfaultfd from /dev/userfaultfd.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
/// The only version of the interface there is.
const API: u64 = 0xaa;

/// Features that memory management needs, with their bits in linux/userfaultfd.h.
pub(super) const NEEDED: &[(&str, u32)] = &[
    ("EVENT_REMAP", 2),
    ("WP_UNPOPULATED", 13),
    ("WP_ASYNC", 15),
    ("MOVE", 16),
];

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// The features of a userfaultfd that sees faults of the kernel too (KVM's are such).
///
/// # Errors
/// The kernel has none, or this user may not have one.
pub(super) fn features() -> io::Result<u64> {
    let fd = open()?;
    let mut api = Api {
        api: API,
        features: 0,
        ioctls: 0,
    };
    // SAFETY: the ioctl reads and writes one `struct uffdio_api`, which `api` is, and keeps no pointer.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut api) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(api.features)
}

fn open() -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    if let Ok(device) = File::options().read(true).write(true).open("/dev/userfaultfd") {
        // SAFETY: the ioctl takes flags by value and returns a new descriptor or -1.
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
        if fd >= 0 {
            // SAFETY: the descriptor is new and has no other owner.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    // SAFETY: the call takes flags by value and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and has no other owner; descriptors fit an int.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
