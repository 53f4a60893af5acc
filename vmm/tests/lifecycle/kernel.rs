//! Kernels of a few instructions, as bzImages and as a vmlinux.

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

/// Where the vmlinux begins.
pub(crate) const VMLINUX_ENTRY: u64 = 0x100_0000;

/// One that writes `k` to its console if RSI points at a setup header: cmp dword [rsi + 0x202], "HdrS"; jne $;
/// mov dx, 0x3F8; mov al, 'k'; out dx, al; jmp $
const LOOKING: &[u8] = &[
    0x81, 0xBE, 0x02, 0x02, 0, 0, b'H', b'd', b'r', b'S', 0x75, 0xFE, 0x66, 0xBA, 0xF8, 0x03, 0xB0, b'k',
    0xEE, 0xEB, 0xFE,
];

/// Writes a vmlinux, an ELF file of one segment, under the name that a bzImage would have.
pub(crate) fn write_vmlinux(dir: &Path) {
    let mut file = vec![0; 0x1000];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7FELF\x02\x01\x01");
    // An executable for x86-64 with one program header, behind the file's.
    for (at, value) in [(16, 2_u16), (18, 62), (54, 56), (56, 1)] {
        put(at, &value.to_le_bytes());
    }
    let bytes = LOOKING.len() as u64;
    // Entry and table; then the segment's kind, offset, physical address, and sizes in the file and in memory.
    for (at, value) in [
        (24, VMLINUX_ENTRY),
        (32, 64),
        (64, 1),
        (72, 0x200),
        (88, VMLINUX_ENTRY),
        (96, bytes),
        (104, bytes),
    ] {
        put(at, &value.to_le_bytes());
    }
    put(0x200, LOOKING);
    std::fs::write(dir.join("bzImage"), file).unwrap();
}
