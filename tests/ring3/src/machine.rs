//! The KVM side of a guest: a virtual machine with two memory slots and vCPUs that start in ring 3.
#![allow(unsafe_code)]
// UNSAFETY: KVM_SET_USER_MEMORY_REGION hands host memory to a guest.

use std::ptr::NonNull;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use crate::board::{Board, Entry};
use crate::{Error, MEMORY_BASE, Unavailable};

/// Protected mode, paging, write protect, numeric errors, alignment mask.
const CR0: u64 = 0x8005_0033;
/// PAE, and SSE state saved and restored.
const CR4: u64 = 0x620;
/// Long mode on and active, no-execute, system calls.
const EFER: u64 = 0xd01;
/// I/O privilege level 3 lets ring 3 leave by `out`; bit 1 is always set.
const RFLAGS: u64 = 0x3002;
/// Code selector, ring 3.
const CODE_SELECTOR: u16 = 0x1b;
/// Data selector, ring 3.
const DATA_SELECTOR: u16 = 0x23;
/// Three pages at an address that no guest of this crate uses; Intel's KVM wants to know them.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// Whether this machine can run a guest of this crate.
///
/// # Errors
/// The reason why not.
pub fn available() -> Result<(), Unavailable> {
    open().map(drop)
}

fn open() -> Result<Kvm, Unavailable> {
    let kvm = Kvm::new().map_err(Unavailable::Open)?;
    for (cap, name) in [
        (Cap::UserMemory, "user memory (KVM_CAP_USER_MEMORY)"),
        (Cap::ImmediateExit, "immediate exit (KVM_CAP_IMMEDIATE_EXIT)"),
        (Cap::ExtCpuid, "CPUID setting (KVM_CAP_EXT_CPUID)"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(Unavailable::Lacks(name));
        }
    }
    Ok(kvm)
}

/// A virtual machine with its memory in place.
#[derive(Debug)]
pub(crate) struct Machine {
    vm: VmFd,
    cpuid: CpuId,
}

impl Machine {
    /// Builds a machine over `board` and the `len` bytes at `memory`.
    ///
    /// # Safety
    /// Both ranges stay mapped, and belong to the guest, until the machine and all its vCPUs are gone.
    pub(crate) unsafe fn new(board: &Board, memory: NonNull<u8>, len: usize) -> Result<Self, Error> {
        let kvm = open()?;
        let vm = kvm.create_vm().map_err(refused("create a virtual machine"))?;
        vm.set_tss_address(TSS_ADDRESS)
            .map_err(refused("take the TSS address"))?;
        let slots = [
            (0, 0, board.memory().as_ptr(), board.memory().len()),
            (1, MEMORY_BASE, memory, len),
        ];
        for (slot, guest_phys_addr, start, len) in slots {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr,
                memory_size: len as u64,
                userspace_addr: start.as_ptr() as u64,
            };
            // SAFETY: the caller vouches for both ranges; they do not overlap in the guest, because the board
            // ends far below MEMORY_BASE.
            unsafe { vm.set_user_memory_region(region) }.map_err(refused("take the guest's memory"))?;
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("name its CPU features"))?;
        Ok(Self { vm, cpuid })
    }

    /// Makes vCPU `index`, ready to run at `entry`.
    pub(crate) fn vcpu(&self, index: usize, board: &Board, entry: Entry) -> Result<VcpuFd, Error> {
        let vcpu = self
            .vm
            .create_vcpu(index as u64)
            .map_err(refused("create a vCPU"))?;
        vcpu.set_cpuid2(&self.cpuid)
            .map_err(refused("set a vCPU's features"))?;
        let sregs = vcpu
            .get_sregs()
            .map_err(refused("read a vCPU's system registers"))?;
        vcpu.set_sregs(&ring3(sregs, board))
            .map_err(refused("start a vCPU in ring 3"))?;
        let regs = kvm_regs {
            rip: entry.rip,
            rsp: entry.rsp,
            rdi: entry.control,
            r8: entry.seed,
            rflags: RFLAGS,
            ..Default::default()
        };
        vcpu.set_regs(&regs).map_err(refused("set a vCPU's registers"))?;
        Ok(vcpu)
    }
}

/// System registers of a 64-bit ring 3 over the board's page tables.
fn ring3(reset: kvm_sregs, board: &Board) -> kvm_sregs {
    let code = kvm_segment {
        limit: u32::MAX,
        selector: CODE_SELECTOR,
        present: 1,
        type_: 11,
        dpl: 3,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: DATA_SELECTOR,
        type_: 3,
        l: 0,
        db: 1,
        ..code
    };
    let task = kvm_segment {
        base: board.tss(),
        limit: 0x67,
        present: 1,
        type_: 11,
        ..Default::default()
    };
    kvm_sregs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: task,
        cr0: CR0,
        cr3: board.cr3(),
        cr4: CR4,
        efer: EFER,
        ..reset
    }
}

fn refused(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |source| Error::Kvm { step, source }
}
