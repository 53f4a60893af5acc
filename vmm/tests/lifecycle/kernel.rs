//! Kernels of a few instructions, as bzImages.

use std::path::Path;

/// One that jumps to itself: jmp $
pub(crate) const IDLE: &[u8] = &[0xEB, 0xFE];

/// One that writes to its console for ever: mov dx, 0x3F8; mov al, 'x'; out dx, al; jmp to the last but one
pub(crate) const TALKATIVE: &[u8] = &[0x66, 0xBA, 0xF8, 0x03, 0xB0, b'x', 0xEE, 0xEB, 0xFD];

/// Writes the kernel that is `code` at its 64-bit entry point.
pub(crate) fn write(dir: &Path, code: &[u8]) {
    let mut file = vec![0u8; 3 * 512 + 4096];
    file[0x1F1] = 2;
    file[0x1F4..0x1F8].copy_from_slice(&(4096u32 / 16).to_le_bytes());
    file[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
    file[0x201] = 0x6A;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020Fu16.to_le_bytes());
    file[0x22C..0x230].copy_from_slice(&0x7FFF_FFFFu32.to_le_bytes());
    file[0x236] = 1;
    file[0x238..0x23C].copy_from_slice(&2047u32.to_le_bytes());
    file[0x260..0x264].copy_from_slice(&(4u32 << 20).to_le_bytes());
    file[3 * 512 + 0x200..][..code.len()].copy_from_slice(code);
    std::fs::write(dir.join("bzImage"), file).unwrap();
}
