//! The smallest files that pass for kernels: two sectors of setup and a page of code.

const SETUP: usize = 3 * 512;
const PROTECTED: usize = 4096;

/// Where a 64-bit kernel begins, in its code.
const ENTRY: usize = 0x200;

/// A bzImage with `code` at its 64-bit entry point (Documentation/arch/x86/boot.rst).
pub(crate) fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut file = vec![0; SETUP + PROTECTED];
    file[0x1F1] = 2;
    file[0x1F4..0x1F8].copy_from_slice(&(PROTECTED as u32 / 16).to_le_bytes());
    file[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
    file[0x201] = 0x6A;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020F_u16.to_le_bytes());
    file[0x211] = 1;
    file[0x22C..0x230].copy_from_slice(&0x7FFF_FFFF_u32.to_le_bytes());
    file[0x236] = 1;
    file[0x238..0x23C].copy_from_slice(&2047_u32.to_le_bytes());
    file[0x260..0x264].copy_from_slice(&(4_u32 << 20).to_le_bytes());
    file[SETUP + ENTRY..][..code.len()].copy_from_slice(code);
    file
}
