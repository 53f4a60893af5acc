//! The guest's physical address map: which range is RAM, which is registers, where firmware tables lie.
//!
//! ```text
//! 0x0000_0000  real-mode leftovers, GDT, boot parameters, page tables, command line
//! 0x000E_0000  ACPI tables, and the reset stub at 0xF_FFF0
//! 0x0010_0000  the kernel; the initrd as high as it fits
//! 0xC000_0000  end of low RAM: the hole for registers begins
//! 0xD000_0000  one page of virtio-mmio registers per device
//! 0xFEC0_0000  IOAPIC, local APICs, KVM's own pages
//! 0x1_0000_0000  high RAM: whatever did not fit below the hole
//! ```

pub use levy_protocol::frame_space::{FrameSpace, HIGH_RAM_START, LOW_RAM_END, PAGE_SIZE, ram_ranges};

/// Where the global descriptor table of the first vCPU lies.
pub const GDT: u64 = 0x500;
/// Linux' `boot_params`, one page ("zero page").
pub const BOOT_PARAMS: u64 = 0x7000;
/// Top of the stack the kernel is entered with.
pub const BOOT_STACK: u64 = 0x8FF0;
/// Page tables that map the first 4 GiB onto themselves: 6 pages.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x2_0000;
/// End of the conventional memory that is handed to the kernel.
pub const CONVENTIONAL_END: u64 = 0x9_FC00;
/// The ACPI root pointer and tables, inside the range Linux leaves to firmware.
pub const ACPI_TABLES: u64 = 0xE_0000;
/// The address a CPU without firmware jumps to on reset.
pub const RESET_VECTOR: u64 = 0xF_FFF0;
/// Where the protected-mode part of the kernel is loaded.
pub const KERNEL: u64 = 0x10_0000;

/// Registers of the first virtio-mmio device.
pub const VIRTIO_MMIO: u64 = 0xD000_0000;
/// Distance between the registers of two virtio-mmio devices, and their size.
pub const VIRTIO_MMIO_STEP: u64 = 0x1000;
/// The interrupt lines that virtio devices get, in order. All are pins of the one IOAPIC; 4 is the serial port's, 13 the
/// power button's.
pub const VIRTIO_GSIS: [u32; 17] = [16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 9, 10, 11, 12, 14, 15];

/// Registers of the IOAPIC inside KVM.
pub const IOAPIC: u32 = 0xFEC0_0000;
/// Registers of the local APICs inside KVM.
pub const LOCAL_APIC: u32 = 0xFEE0_0000;
/// Three pages that KVM keeps for itself on Intel hosts.
pub const KVM_TSS: usize = 0xFFFB_D000;
/// One page that KVM keeps for itself on Intel hosts.
pub const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;

/// First I/O port of the serial console (COM1), 8 ports.
pub const COM1: u16 = 0x3F8;
/// Interrupt line of the serial console.
pub const COM1_GSI: u32 = 4;
/// Interrupt line of the power button.
pub const POWER_BUTTON_GSI: u32 = 13;
/// Keyboard controller command port: 0xFE pulls the CPU's reset line.
pub const I8042_COMMAND: u16 = 0x64;
/// pvpanic: the guest's kernel reports its own panic here.
pub const PVPANIC: u16 = 0x505;
/// ACPI sleep control register.
pub const SLEEP_CONTROL: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS: u16 = 0x601;
/// ACPI reset register; any write resets.
pub const RESET: u16 = 0x604;
