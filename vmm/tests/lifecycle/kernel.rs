//! Kernels of a few instructions, as bzImages.

use std::path::Path;

use crate::bzimage::bzimage;

/// One that jumps to itself: jmp $
pub(crate) const IDLE: &[u8] = &[0xEB, 0xFE];

/// One that writes to its console for ever: mov dx, 0x3F8; mov al, 'x'; out dx, al; jmp to the last but one
pub(crate) const TALKATIVE: &[u8] = &[0x66, 0xBA, 0xF8, 0x03, 0xB0, b'x', 0xEE, 0xEB, 0xFD];

/// One that says for ever that it panics: mov dx, 0x505; mov al, 1; out dx, al; jmp to the last but one
pub(crate) const PANICKING: &[u8] = &[0x66, 0xBA, 0x05, 0x05, 0xB0, 1, 0xEE, 0xEB, 0xFD];

/// Writes the kernel that is `code` at its 64-bit entry point.
pub(crate) fn write(dir: &Path, code: &[u8]) {
    std::fs::write(dir.join("bzImage"), bzimage(code)).unwrap();
}
