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

/// Bytes in a guest page frame.
pub const PAGE_SIZE: u64 = 4096;

/// First address above low RAM.
pub const LOW_RAM_END: u64 = 0xC000_0000;
/// First address of high RAM.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

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

/// The ranges of RAM that a guest of `bytes` has, as (guest-physical start, length in bytes).
pub fn ram_ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(LOW_RAM_END);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((HIGH_RAM_START, bytes - low));
    }
    ranges
}

/// The guest frame numbers that a guest has: those from 0 up to its last page of RAM, the hole for registers among them.
///
/// A guest of up to 3 GiB has as many frame numbers as pages of RAM, a larger one has 1 GiB of frame numbers more. Where
/// page numbers are checked or tables are indexed by them, this is the bound, and never the number of pages of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameSpace(u32);

impl FrameSpace {
    /// That of a guest with `bytes` of RAM; a part of a page at the end counts as one. `None` where frame numbers of 32
    /// bits do not suffice, which is at 16 TiB less the hole.
    pub fn of_ram(bytes: u64) -> Option<Self> {
        let (start, len) = ram_ranges(bytes).pop()?;
        let end = start.checked_add(len)?;
        u32::try_from(end.div_ceil(PAGE_SIZE)).ok().map(Self)
    }

    /// One more than the highest frame number.
    pub const fn frames(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_beyond_the_hole_continues_above_4_gib() {
        assert_eq!(ram_ranges(512 << 20), [(0, 512 << 20)]);
        assert_eq!(ram_ranges(LOW_RAM_END), [(0, LOW_RAM_END)]);
        assert_eq!(
            ram_ranges(5 << 30),
            [(0, LOW_RAM_END), (HIGH_RAM_START, (5 << 30) - LOW_RAM_END)]
        );
    }

    #[test]
    fn frame_numbers_go_on_above_the_hole() {
        const GIB: u64 = 1 << 30;
        let frames = |bytes| FrameSpace::of_ram(bytes).map(FrameSpace::frames);
        assert_eq!(frames(513 << 20), Some(513 * 256));
        assert_eq!(frames(3 * GIB), Some(3 << 18));
        assert_eq!(frames(3 * GIB + (1 << 20)), Some((4 << 18) + 256));
        assert_eq!(frames(3 * GIB + 1), Some((4 << 18) + 1));
        assert_eq!(frames(16 * GIB), Some(17 << 18));
        // The last page that fits, and the first that does not.
        let most = (u64::from(u32::MAX) * PAGE_SIZE) - GIB;
        assert_eq!(frames(most), Some(u32::MAX));
        assert_eq!(frames(most + 1), None);
        assert_eq!(frames(u64::MAX), None);
    }
}
