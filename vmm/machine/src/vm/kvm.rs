//! Opening KVM and creating a virtual machine whose memory is a [`GuestRam`].
#![allow(unsafe_code)]
// UNSAFETY: handing guest RAM to KVM, which then reads and writes it for as long as the VM lives.

use std::io;
use std::sync::Arc;

use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::layout::{self, PAGE_SIZE};
use crate::memory::GuestRam;

/// What every guest here needs of KVM.
const NEEDED: [(Cap, &str); 5] = [
    (Cap::Irqchip, "an interrupt controller (KVM_CAP_IRQCHIP)"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Local APIC ids are eight bits, 255 means everyone, and the IOAPIC has one.
const MOST_VCPUS: usize = 254;

/// Why this host cannot run a guest.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum HostError {
    /// There is no KVM.
    #[error(
        "there is no /dev/kvm; load kvm_intel or kvm_amd, and in a virtual machine enable nested virtualization (`levy doctor` explains)"
    )]
    NoKvm,
    /// KVM is there, but not for us.
    #[error(
        "no permission to use /dev/kvm; add yourself to its group (usermod -aG kvm $USER, then log in again)"
    )]
    NoPermission,
    /// KVM cannot be used.
    #[error("cannot use /dev/kvm (`levy doctor` explains)")]
    Unusable(#[source] io::Error),
    /// KVM lacks something.
    #[error("this host's KVM lacks {0}; use a newer kernel")]
    Lacks(&'static str),
    /// Too many vCPUs, or none.
    #[error("cpus={asked}: a guest on this host has 1 to {most} vCPUs")]
    Vcpus { asked: u64, most: usize },
    /// More guest memory than the host has.
    #[error("memory size={asked_mib}M is above this host's {have_mib} MiB; lower --memory size=")]
    MemoryAboveHost { asked_mib: u64, have_mib: u64 },
    /// More than this process may map.
    #[error(
        "memory size={asked_mib}M needs {needed_mib} MiB of data in this process, which may have {have_mib} MiB; raise that \
         with `ulimit -d`, or LimitDATA= of its service, or lower --memory size="
    )]
    MemoryAboveLimit {
        asked_mib: u64,
        needed_mib: u64,
        have_mib: u64,
    },
    /// KVM refused a step of the set-up.
    #[error("KVM refused to {step}")]
    Refused {
        step: &'static str,
        #[source]
        source: io::Error,
    },
}

/// What KVM said, as an error of the system: what shows it names the limit that was met.
pub(super) fn reason(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

/// The error of a `step` that KVM refused.
pub(super) fn refused(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> HostError {
    move |error| HostError::Refused {
        step,
        source: reason(error),
    }
}

/// Opens /dev/kvm and checks that it can do what guests here need.
///
/// # Errors
/// When it is missing, forbidden, or too old.
pub fn open_kvm() -> Result<Kvm, HostError> {
    let kvm = Kvm::new().map_err(|e| why_not(e.errno()))?;
    if kvm.get_api_version() != KVM_API_VERSION as i32 {
        return Err(HostError::Lacks("API version 12"));
    }
    for (cap, name) in NEEDED {
        if !kvm.check_extension(cap) {
            return Err(HostError::Lacks(name));
        }
    }
    Ok(kvm)
}

/// Why /dev/kvm cannot be opened.
fn why_not(errno: i32) -> HostError {
    match errno {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => HostError::NoKvm,
        libc::EACCES | libc::EPERM => HostError::NoPermission,
        errno => HostError::Unusable(io::Error::from_raw_os_error(errno)),
    }
}

/// The most vCPUs a guest can have on this host.
pub fn most_vcpus(kvm: &Kvm) -> usize {
    kvm.get_max_vcpus().min(MOST_VCPUS)
}

/// A virtual machine with memory and an interrupt controller, and nothing else yet.
pub struct Vm {
    kvm: Kvm,
    // Before the memory: KVM must let go of it first.
    fd: Arc<VmFd>,
    ram: Arc<GuestRam>,
}

impl Vm {
    /// Creates the machine with all of `ram` at the addresses the layout gives it.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn new(kvm: Kvm, ram: Arc<GuestRam>) -> Result<Self, HostError> {
        let fd = kvm.create_vm().map_err(refused("create a virtual machine"))?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(refused("place its identity map"))?;
        fd.set_tss_address(layout::KVM_TSS)
            .map_err(refused("place its TSS"))?;
        fd.create_irq_chip()
            .map_err(refused("create the interrupt controller"))?;
        for (slot, region) in (0..).zip(ram.regions()) {
            let memory = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.frames.start.address(),
                memory_size: region.frames.pages * PAGE_SIZE,
                userspace_addr: region.host as u64,
            };
            // SAFETY: the range is mapped by `ram`, which this struct keeps alive for longer than the VM (field
            // order), and ranges of one GuestRam do not overlap.
            unsafe { fd.set_user_memory_region(memory) }.map_err(refused("take the guest's memory"))?;
        }
        let fd = Arc::new(fd);
        Ok(Self { kvm, fd, ram })
    }

    /// The KVM instance.
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// KVM's handle of the machine.
    pub fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    /// The guest's memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_that_is_missing_or_forbidden_says_so_with_the_cure() {
        let missing = why_not(libc::ENOENT).to_string();
        assert!(
            missing.contains("no /dev/kvm") && missing.contains("kvm_amd"),
            "{missing}"
        );
        let forbidden = why_not(libc::EACCES).to_string();
        assert!(
            forbidden.contains("no permission") && forbidden.contains("usermod"),
            "{forbidden}"
        );
        assert!(why_not(libc::EBUSY).to_string().contains("levy doctor"));
    }
}
