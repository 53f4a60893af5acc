//! Getting a vCPU out of KVM_RUN, reliably.
//!
//! A signal alone is lost when it lands between the thread's look at what is wanted and its entry into KVM. So the
//! flag `immediate_exit` in the vCPU's shared page is raised first: an entry that comes too late leaves at once.
#![allow(unsafe_code)]
// UNSAFETY: maps the page that a vCPU shares with KVM a second time, to raise a flag in it from other threads.

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

const PAGE: usize = 4096;

/// The signal that interrupts KVM_RUN. Its handler does nothing.
pub(super) fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Makes the kick signal harmless to threads it reaches outside KVM_RUN.
pub(super) fn install_kick_handler() -> io::Result<()> {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = register_signal_handler(kick_signal(), ignore)
            .map_err(|e| io::Error::from_raw_os_error(e.errno()));
    });
    result
}

/// The `immediate_exit` flag of one vCPU.
#[derive(Debug)]
pub(super) struct ExitFlag {
    page: NonNull<u8>,
}

// SAFETY: the page is only accessed through an atomic, and the mapping belongs to this value alone.
unsafe impl Send for ExitFlag {}
// SAFETY: as above.
unsafe impl Sync for ExitFlag {}

impl ExitFlag {
    pub(super) fn of(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: a new shared mapping of the first page of the vCPU's file, wherever the kernel puts it.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let page = NonNull::new(page.cast()).expect("mmap does not map page 0");
        Ok(Self { page })
    }

    pub(super) fn raise(&self) {
        self.flag().store(1, Ordering::SeqCst);
    }

    pub(super) fn lower(&self) {
        self.flag().store(0, Ordering::SeqCst);
    }

    fn flag(&self) -> &AtomicU8 {
        // SAFETY: the mapping lives as long as `self`; the byte is inside its page. KVM and VcpuFd only read it.
        unsafe {
            let byte = self.page.as_ptr().add(offset_of!(kvm_run, immediate_exit));
            AtomicU8::from_ptr(byte)
        }
    }
}

impl Drop for ExitFlag {
    fn drop(&mut self) {
        // SAFETY: unmaps what `of` mapped, once.
        unsafe { libc::munmap(self.page.as_ptr().cast(), PAGE) };
    }
}
