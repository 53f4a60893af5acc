//! Linux' `boot_params`, the "zero page" (Documentation/arch/x86/zero-page.rst).

use super::kernel::HEADER_AT;
use crate::layout;

const ACPI_RSDP: usize = 0x070;
const E820_ENTRIES: usize = 0x1E8;
const TYPE_OF_LOADER: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21C;
const CMD_LINE_PTR: usize = 0x228;
const E820_TABLE: usize = 0x2D0;

/// A loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xFF;

#[derive(Clone, Copy)]
enum E820 {
    Ram = 1,
    Reserved = 2,
}

/// The page as the kernel expects it at entry. `header` is its setup header, from [`HEADER_AT`] on; `ramdisk` is (address, bytes).
pub(super) fn zero_page(header: &[u8], ram_bytes: u64, ramdisk: Option<(u64, u64)>, rsdp: u64) -> Vec<u8> {
    let mut page = vec![0; layout::PAGE_SIZE as usize];
    put(&mut page, HEADER_AT, header);
    page[TYPE_OF_LOADER] = UNDEFINED_LOADER;
    put(&mut page, ACPI_RSDP, &rsdp.to_le_bytes());
    put(&mut page, CMD_LINE_PTR, &(layout::CMDLINE as u32).to_le_bytes());
    if let Some((address, bytes)) = ramdisk {
        put(&mut page, RAMDISK_IMAGE, &(address as u32).to_le_bytes());
        put(&mut page, RAMDISK_SIZE, &(bytes as u32).to_le_bytes());
    }
    let map = memory_map(ram_bytes);
    page[E820_ENTRIES] = map.len() as u8;
    for (i, (start, len, kind)) in map.into_iter().enumerate() {
        let at = E820_TABLE + i * 20;
        put(&mut page, at, &start.to_le_bytes());
        put(&mut page, at + 8, &len.to_le_bytes());
        put(&mut page, at + 16, &(kind as u32).to_le_bytes());
    }
    page
}

fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

fn memory_map(ram_bytes: u64) -> Vec<(u64, u64, E820)> {
    let hole = (
        layout::CONVENTIONAL_END,
        layout::KERNEL - layout::CONVENTIONAL_END,
        E820::Reserved,
    );
    let mut map = vec![(0, layout::CONVENTIONAL_END, E820::Ram), hole];
    for (start, len) in layout::ram_ranges(ram_bytes) {
        let from = start.max(layout::KERNEL);
        map.push((from, start + len - from, E820::Ram));
    }
    map
}
