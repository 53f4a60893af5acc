//! userfaultfd(2), one method per ioctl, no policy.
//!
//! Every range is a [`Span`], so these calls can only touch memory that this crate may rearrange.
#![allow(unsafe_code)]
// UNSAFETY: raw ioctls that pass structures of addresses to the kernel.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use linux_raw_sys::general as sys;
use rustix::io::Errno;

use crate::page::PAGE_SIZE;
use crate::region::kernel::ioctl::{ioctl, ior, iowr, last};
use crate::region::kernel::span::Span;

/// Write notifications are resolved by the kernel and only recorded; pages can be moved; untouched pages can be
/// protected; moving a mapping tells us and keeps the registration.
pub(crate) const GUEST_FEATURES: u64 = (sys::UFFD_FEATURE_PAGEFAULT_FLAG_WP
    | sys::UFFD_FEATURE_WP_ASYNC
    | sys::UFFD_FEATURE_MOVE
    | sys::UFFD_FEATURE_WP_UNPOPULATED
    | sys::UFFD_FEATURE_POISON
    | sys::UFFD_FEATURE_EVENT_REMAP) as u64;

/// Plain synchronous write protection.
pub(crate) const POOL_FEATURES: u64 =
    (sys::UFFD_FEATURE_PAGEFAULT_FLAG_WP | sys::UFFD_FEATURE_WP_HUGETLBFS_SHMEM) as u64;

/// UFFDIO_WRITEPROTECT_MODE_WP of linux/userfaultfd.h.
const WRITEPROTECT_MODE_WP: u32 = 1;

/// What a range is registered for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Missing pages and writes: guest memory and the area of re-homes.
    MissingAndWrites,
    /// Missing pages only: staging.
    Missing,
    /// Writes only: pool mappings.
    Writes,
}

/// How far a call got that works page by page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Pages done, from the start.
    pub(crate) pages: usize,
    /// Why it stopped there.
    pub(crate) stopped: Option<Errno>,
}

impl Progress {
    fn of(result: Result<(), Errno>, bytes: i64, pages: usize) -> Self {
        match result {
            Ok(()) => Self { pages, stopped: None },
            // A negative count repeats the error; a positive one is a partial success.
            Err(error) => Self {
                pages: usize::try_from(bytes).unwrap_or(0) / PAGE_SIZE,
                stopped: Some(error),
            },
        }
    }
}

/// The same bit in the modes of COPY, ZEROPAGE and MOVE. A thread that waits is woken once, when the page is settled,
/// and never sees a page that is there before its state and the counters say so.
const DONT_WAKE: u64 = 1;

/// What a userfaultfd reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A thread waits for the page at this address.
    Fault {
        /// Any address in the page.
        address: usize,
        /// It wants to write to a protected page.
        protected: bool,
    },
    /// A mapping was moved; reading this let the mover go on.
    Remapped,
}

/// Why a userfaultfd could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// No permission, or no userfaultfd in this kernel.
    Open(Errno),
    /// The kernel lacks features; these bits are what it has.
    Features(u64),
}

/// One userfaultfd, non-blocking.
#[derive(Debug)]
pub(crate) struct Userfault {
    fd: OwnedFd,
}

impl Userfault {
    /// Opens /dev/userfaultfd, or asks the system call where that is not there, and switches `features` on.
    pub(crate) fn open(features: u64) -> Result<Self, OpenError> {
        let fd = open_descriptor().map_err(OpenError::Open)?;
        let mut api = sys::uffdio_api {
            api: u64::from(sys::UFFD_API),
            features,
            ioctls: 0,
        };
        // SAFETY: the structure is what the ioctl expects and outlives the call.
        unsafe { ioctl(&fd, iowr::<sys::uffdio_api>(sys::_UFFDIO_API), &raw mut api) }
            .map_err(|_| OpenError::Features(available_features()))?;
        Ok(Self { fd })
    }

    /// Watches `span`.
    pub(crate) fn register(&self, span: Span, watch: Watch) -> Result<(), Errno> {
        let mode = match watch {
            Watch::MissingAndWrites => sys::UFFDIO_REGISTER_MODE_MISSING | sys::UFFDIO_REGISTER_MODE_WP,
            Watch::Missing => sys::UFFDIO_REGISTER_MODE_MISSING,
            Watch::Writes => sys::UFFDIO_REGISTER_MODE_WP,
        };
        let mut arg = sys::uffdio_register {
            range: range(span),
            mode: u64::from(mode),
            ioctls: 0,
        };
        // SAFETY: as in `open`; the span is ours to watch.
        unsafe {
            ioctl(
                &self.fd,
                iowr::<sys::uffdio_register>(sys::_UFFDIO_REGISTER),
                &raw mut arg,
            )
        }
    }

    /// Stops watching `span`.
    pub(crate) fn unregister(&self, span: Span) -> Result<(), Errno> {
        let mut arg = range(span);
        // SAFETY: as in `open`; everything that was held of the span was given back before.
        unsafe {
            ioctl(
                &self.fd,
                ior::<sys::uffdio_range>(sys::_UFFDIO_UNREGISTER),
                &raw mut arg,
            )
        }
    }

    /// Lets every thread that waits in `span` try its access again.
    pub(crate) fn wake(&self, span: Span) {
        let mut arg = range(span);
        // SAFETY: as in `open`; waking too often is harmless.
        let woken = unsafe {
            ioctl(
                &self.fd,
                ior::<sys::uffdio_range>(sys::_UFFDIO_WAKE),
                &raw mut arg,
            )
        };
        debug_assert!(woken.is_ok(), "wake {span:?}: {woken:?}");
    }

    /// Fills empty pages of `to` with copies of the bytes at `from`. Wakes no thread.
    pub(crate) fn copy(&self, to: Span, from: &[u8]) -> Progress {
        assert_eq!(from.len(), to.len());
        let (dst, src, len) = (to.start() as u64, from.as_ptr() as u64, to.len() as u64);
        let mut arg = sys::uffdio_copy {
            dst,
            src,
            len,
            mode: DONT_WAKE,
            copy: 0,
        };
        // SAFETY: as in `open`; `from` is readable for the length given and the kernel fills only empty pages.
        let done = unsafe {
            ioctl(
                &self.fd,
                iowr::<sys::uffdio_copy>(sys::_UFFDIO_COPY),
                &raw mut arg,
            )
        };
        Progress::of(done, arg.copy, to.pages())
    }

    /// Maps the zero page over empty pages of `span`. Wakes no thread.
    pub(crate) fn zero(&self, span: Span) -> Progress {
        let mut arg = sys::uffdio_zeropage {
            range: range(span),
            mode: DONT_WAKE,
            zeropage: 0,
        };
        // SAFETY: as in `open`; the kernel fills only empty pages.
        let done = unsafe {
            ioctl(
                &self.fd,
                iowr::<sys::uffdio_zeropage>(sys::_UFFDIO_ZEROPAGE),
                &raw mut arg,
            )
        };
        Progress::of(done, arg.zeropage, span.pages())
    }

    /// Maps a zero page at `address`, which is registered and belongs to no guest, and wakes the threads that wait for it.
    pub(crate) fn fill_foreign(&self, address: usize) {
        let range = sys::uffdio_range {
            start: (address / PAGE_SIZE * PAGE_SIZE) as u64,
            len: PAGE_SIZE as u64,
        };
        let mut fill = sys::uffdio_zeropage {
            range,
            mode: 0,
            zeropage: 0,
        };
        let mut wake = range;
        let (zero, again) = (
            iowr::<sys::uffdio_zeropage>(sys::_UFFDIO_ZEROPAGE),
            ior::<sys::uffdio_range>(sys::_UFFDIO_WAKE),
        );
        // SAFETY: as in `open`; the kernel fills only an empty page of an area that is registered here.
        let filled = unsafe { ioctl(&self.fd, zero, &raw mut fill) };
        if filled.is_err() {
            // It is there, or the area is gone: a thread that waits finds out by trying again.
            // SAFETY: as in `wake`.
            let _ = unsafe { ioctl(&self.fd, again, &raw mut wake) };
        }
    }

    /// Moves the pages of `from` to the empty pages of `to`. Wakes no thread.
    pub(crate) fn transfer(&self, from: Span, to: Span) -> Progress {
        assert_eq!(from.len(), to.len());
        let (dst, src, len) = (to.start() as u64, from.start() as u64, to.len() as u64);
        let mut arg = sys::uffdio_move {
            dst,
            src,
            len,
            mode: DONT_WAKE,
            move_: 0,
        };
        // SAFETY: as in `open`; both ends are memory that is ours to rearrange and no reference points into either.
        let done = unsafe {
            ioctl(
                &self.fd,
                iowr::<sys::uffdio_move>(sys::_UFFDIO_MOVE),
                &raw mut arg,
            )
        };
        Progress::of(done, arg.move_, to.pages())
    }

    /// Makes writes to `span` wait, readers go on.
    pub(crate) fn protect(&self, span: Span) -> Result<(), Errno> {
        self.write_protect(span, WRITEPROTECT_MODE_WP)
    }

    /// Lets writes to `span` through again and wakes their waiters.
    pub(crate) fn unprotect(&self, span: Span) -> Result<(), Errno> {
        self.write_protect(span, 0)
    }

    fn write_protect(&self, span: Span, mode: u32) -> Result<(), Errno> {
        let mut arg = sys::uffdio_writeprotect {
            range: range(span),
            mode: u64::from(mode),
        };
        let call = iowr::<sys::uffdio_writeprotect>(sys::_UFFDIO_WRITEPROTECT);
        // SAFETY: as in `open`.
        unsafe { ioctl(&self.fd, call, &raw mut arg) }
    }

    /// Makes every access to the empty pages of `span` fail like one to broken memory, and wakes their waiters.
    pub(crate) fn poison(&self, span: Span) -> Progress {
        let mut arg = sys::uffdio_poison {
            range: range(span),
            mode: 0,
            updated: 0,
        };
        // SAFETY: as in `open`; the kernel marks only empty pages.
        let done = unsafe {
            ioctl(
                &self.fd,
                iowr::<sys::uffdio_poison>(sys::_UFFDIO_POISON),
                &raw mut arg,
            )
        };
        Progress::of(done, arg.updated, span.pages())
    }

    /// Reads one waiting event, or `None` when there is none.
    ///
    /// # Errors
    /// Anything but "nothing there": the descriptor is unusable.
    pub(crate) fn read(&self) -> Result<Option<Event>, Errno> {
        loop {
            let mut message = std::mem::MaybeUninit::<sys::uffd_msg>::zeroed();
            let size = size_of::<sys::uffd_msg>();
            // SAFETY: the buffer is as large as said.
            let got = unsafe { libc::read(self.fd.as_raw_fd(), message.as_mut_ptr().cast(), size) };
            if got >= 0 && got != size as isize {
                return Err(Errno::IO);
            }
            if got < 0 {
                return match last() {
                    Errno::AGAIN => Ok(None),
                    Errno::INTR => continue,
                    error => Err(error),
                };
            }
            // SAFETY: zeroed first and then filled by the kernel; every bit pattern is a message.
            let message = unsafe { message.assume_init() };
            return Ok(Some(match u32::from(message.event) {
                // SAFETY: this kind of message carries this member.
                sys::UFFD_EVENT_PAGEFAULT => unsafe {
                    Event::Fault {
                        address: message.arg.pagefault.address as usize,
                        protected: message.arg.pagefault.flags & u64::from(sys::UFFD_PAGEFAULT_FLAG_WP) != 0,
                    }
                },
                sys::UFFD_EVENT_REMAP => Event::Remapped,
                // Nothing else was asked for.
                _ => return Err(Errno::PROTO),
            }));
        }
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open_descriptor() -> Result<OwnedFd, Errno> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let made = if let Ok(device) = File::options().read(true).write(true).open("/dev/userfaultfd") {
        // SAFETY: USERFAULTFD_IOC_NEW, _IO(0xAA, 0), takes the flags by value.
        unsafe { libc::ioctl(device.as_raw_fd(), 0xAA00, flags) }
    } else {
        // SAFETY: no memory is passed.
        unsafe { libc::syscall(libc::SYS_userfaultfd, flags) as i32 }
    };
    if made < 0 {
        return Err(last());
    }
    // SAFETY: a descriptor that the kernel just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// The feature bits of this kernel, 0 when it has no userfaultfd.
fn available_features() -> u64 {
    let Ok(fd) = open_descriptor() else { return 0 };
    let mut api = sys::uffdio_api {
        api: u64::from(sys::UFFD_API),
        features: 0,
        ioctls: 0,
    };
    // SAFETY: the structure is what the ioctl expects and outlives the call.
    match unsafe { ioctl(&fd, iowr::<sys::uffdio_api>(sys::_UFFDIO_API), &raw mut api) } {
        Ok(()) => api.features,
        Err(_) => 0,
    }
}

fn range(span: Span) -> sys::uffdio_range {
    sys::uffdio_range {
        start: span.start() as u64,
        len: span.len() as u64,
    }
}
