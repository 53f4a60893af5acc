//! The Linux bzImage: its setup header, and the protected-mode part behind it (boot.rst, "The Real-Mode Kernel Header").

use super::kernel::{Fields, HEAD, HEADER_AT, Image, KernelError, Piece};
use crate::layout;

/// Offset of the 64-bit entry point from the start of the protected-mode part.
const ENTRY_64: u64 = 0x200;

const SECTOR: u64 = 512;
/// First boot protocol with `xloadflags`, `pref_address` and `init_size` (2.12, Linux 3.8).
const OLDEST_PROTOCOL: u16 = 0x020C;
const XLF_KERNEL_64: u16 = 1;

/// Reads `head`, the first [`HEAD`] bytes of a file that has `have`.
///
/// # Errors
/// It is no 64-bit bzImage, or the file ends too early.
pub(super) fn read(head: &[u8], have: u64) -> Result<Image, KernelError> {
    if head.get(0x1FE..0x200) != Some(&[0x55, 0xAA]) || head.get(0x202..0x206) != Some(b"HdrS") {
        return Err(KernelError::NotKernel);
    }
    if head.len() < HEAD {
        let announced = HEAD as u64;
        return Err(KernelError::Truncated { announced, have });
    }
    let fields = Fields(head);
    let version = fields.u16(0x206);
    if version < OLDEST_PROTOCOL {
        let (major, minor) = (version >> 8, version & 0xFF);
        return Err(KernelError::OldProtocol { major, minor });
    }
    if fields.u16(0x236) & XLF_KERNEL_64 == 0 {
        return Err(KernelError::ThirtyTwoBit);
    }
    // boot.rst: the header ends at 0x202 plus the byte at 0x201.
    let header_end = (0x202 + usize::from(head[0x201])).min(HEAD);
    // Where it unpacks to (`pref_address` or where it was loaded, whichever is higher), plus `init_size`.
    let unpacked_at = fields.u64(0x258).max(layout::KERNEL);
    let end = unpacked_at.saturating_add(u64::from(fields.u32(0x260)));
    Ok(Image {
        pieces: vec![body(head, have)?],
        header: head[HEADER_AT..header_end].to_vec(),
        entry: layout::KERNEL + ENTRY_64,
        end: end.min(1 << 40),
        initrd_limit: u64::from(fields.u32(0x22C)),
        // The command line's place in the layout has this much room, too.
        cmdline_limit: (fields.u32(0x238) as usize).min(0xFFFF),
    })
}

/// The protected-mode part.
fn body(head: &[u8], have: u64) -> Result<Piece, KernelError> {
    let setup_sectors = match head[HEADER_AT] {
        0 => 4,
        n => u64::from(n),
    };
    let from = (setup_sectors + 1) * SECTOR;
    let bytes = u64::from(Fields(head).u32(0x1F4)) * 16;
    let announced = from + bytes;
    // syssize counts paragraphs of 16 bytes, rounded up.
    if bytes == 0 || have + 15 < announced {
        return Err(KernelError::Truncated { announced, have });
    }
    Ok(Piece {
        from,
        bytes: bytes.min(have - from),
        to: layout::KERNEL,
    })
}
