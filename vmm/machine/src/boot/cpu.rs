//! The state the first vCPU is entered with: 64-bit mode, flat segments, the first 4 GiB mapped onto themselves.

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;

use super::{BootError, write};
use crate::layout;
use crate::memory::GuestRam;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const PRESENT_WRITABLE: u64 = 3;
const LARGE_PAGE: u64 = 1 << 7;
const GIGABYTES: u64 = 4;

/// Selectors that the boot protocol fixes.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

/// Where the first vCPU starts.
#[derive(Clone, Copy, Debug)]
pub struct EntryState {
    /// First instruction.
    pub rip: u64,
    /// Guest-physical address of `boot_params`.
    pub boot_params: u64,
}

/// Writes the descriptor table and the page tables that [`set_entry_state`] points at.
pub(super) fn write_boot_structures(ram: &GuestRam) -> Result<(), BootError> {
    let descriptors: [u64; 5] = [
        0,
        0,
        0x00AF_9B00_0000_FFFF, // 64-bit code
        0x00CF_9300_0000_FFFF, // data
        0x008F_8B00_0000_FFFF, // busy TSS; long mode wants one
    ];
    write(ram, "descriptor table", layout::GDT, &words(descriptors))?;
    let table = |n: u64| layout::PAGE_TABLES + n * layout::PAGE_SIZE;
    write(
        ram,
        "page tables",
        table(0),
        &words([table(1) | PRESENT_WRITABLE]),
    )?;
    let directories = (0..GIGABYTES).map(|n| table(2 + n) | PRESENT_WRITABLE);
    write(ram, "page tables", table(1), &words(directories))?;
    let pages = (0..GIGABYTES * 512).map(|n| n << 21 | PRESENT_WRITABLE | LARGE_PAGE);
    write(ram, "page tables", table(2), &words(pages))
}

fn words(values: impl IntoIterator<Item = u64>) -> Vec<u8> {
    values.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// Puts `vcpu` at `entry`.
///
/// # Errors
/// When KVM refuses the registers.
pub fn set_entry_state(vcpu: &VcpuFd, entry: &EntryState) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = segment(BOOT_CS, 0xB);
    sregs.cs.l = 1;
    sregs.cs.db = 0;
    let data = segment(BOOT_DS, 0x3);
    (sregs.ds, sregs.es, sregs.fs) = (data, data, data);
    (sregs.gs, sregs.ss) = (data, data);
    sregs.tr = segment(BOOT_TSS, 0xB);
    (sregs.tr.s, sregs.tr.db) = (0, 0);
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry.rip,
        rsi: entry.boot_params,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        rflags: 2,
        ..Default::default()
    })
}

fn segment(selector: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}
