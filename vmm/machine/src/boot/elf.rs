//! A vmlinux: the kernel as it was linked, an ELF file that says by itself where its segments go.
//!
//! It is entered as an unpacked bzImage enters it, so nothing is left to do before the kernel's own code: no unpacking,
//! and no place chosen at random (KASLR). It has no setup header; `boot_params` gets the one that a bzImage of such a
//! kernel would have.

use std::fs::File;

use super::kernel::{Fields, HEADER_AT, Image, KernelError, Piece, read_at};
use crate::layout;

/// What an ELF file begins with.
pub(super) const MAGIC: &[u8] = b"\x7FELF";

const FILE_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const CLASS_32: u8 = 1;
const PT_LOAD: u32 = 1;

/// Where the setup header of a bzImage ends.
const HEADER_END: usize = 0x26C;
/// Linux' COMMAND_LINE_SIZE on x86, without the final zero.
const CMDLINE_LIMIT: usize = 2047;
/// As in the header of every bzImage of a 64-bit kernel.
const INITRD_LIMIT: u32 = 0x7FFF_FFFF;

/// A PT_LOAD that is wanted in memory.
#[derive(Clone, Copy, Debug)]
struct Segment {
    /// Its place in the table, from 0.
    number: usize,
    /// What the file has of it.
    piece: Piece,
    /// Its size in memory: behind the piece it is zeros, as fresh guest memory is.
    bytes: u64,
}

impl Segment {
    /// First address behind it. It was checked to be below the end of low RAM.
    fn end(self) -> u64 {
        self.piece.to + self.bytes
    }

    fn refused(self, why: &'static str) -> KernelError {
        KernelError::Segment {
            number: self.number,
            bytes: self.bytes,
            address: self.piece.to,
            why,
        }
    }
}

/// Reads the headers of `file`, which has `have` bytes and begins with `head`.
///
/// # Errors
/// It is no executable for x86-64, it ends too early, or a segment cannot be where it wants to be.
pub(super) fn read(file: &mut File, head: &[u8], have: u64) -> Result<Image, KernelError> {
    check_file_header(head, have)?;
    let segments = segments(&table(file, head, have)?, have)?;
    let entry = Fields(head).u64(24);
    let in_file = |s: &Segment| (s.piece.to..s.piece.to + s.piece.bytes).contains(&entry);
    if !segments.iter().any(in_file) {
        return Err(KernelError::Entry { entry });
    }
    // Sorted and apart: the first is the lowest, the last the highest.
    let (start, end) = (segments[0].piece.to, segments[segments.len() - 1].end());
    Ok(Image {
        pieces: segments
            .iter()
            .map(|segment| segment.piece)
            .filter(|piece| piece.bytes > 0)
            .collect(),
        header: setup_header(start, end),
        entry,
        end,
        initrd_limit: INITRD_LIMIT.into(),
        cmdline_limit: CMDLINE_LIMIT,
    })
}

fn check_file_header(head: &[u8], have: u64) -> Result<(), KernelError> {
    if head.len() < FILE_HEADER {
        let announced = FILE_HEADER as u64;
        return Err(KernelError::Truncated { announced, have });
    }
    if head[4] == CLASS_32 {
        return Err(KernelError::ThirtyTwoBit);
    }
    let fields = Fields(head);
    for (field, value, right) in [
        ("class", u16::from(head[4]), 2),
        ("byte order", u16::from(head[5]), 1),
        ("machine", fields.u16(18), 62),
        ("type", fields.u16(16), 2),
        ("program header size", fields.u16(54), PROGRAM_HEADER as u16),
    ] {
        if value != right {
            let (value, right) = (value.into(), right.into());
            return Err(KernelError::NotVmlinux { field, value, right });
        }
    }
    Ok(())
}

/// The table of program headers.
fn table(file: &mut File, head: &[u8], have: u64) -> Result<Vec<u8>, KernelError> {
    let fields = Fields(head);
    let (at, bytes) = (fields.u64(32), usize::from(fields.u16(56)) * PROGRAM_HEADER);
    let announced = at.saturating_add(bytes as u64);
    if announced > have {
        return Err(KernelError::Truncated { announced, have });
    }
    let table = read_at(file, at, bytes)?;
    match table.len() == bytes {
        true => Ok(table),
        false => Err(KernelError::Truncated { announced, have }),
    }
}

/// The segments to load, by ascending address; at least one.
fn segments(table: &[u8], have: u64) -> Result<Vec<Segment>, KernelError> {
    let mut segments = Vec::new();
    for (number, header) in table.chunks_exact(PROGRAM_HEADER).enumerate() {
        let fields = Fields(header);
        let segment = Segment {
            number,
            piece: Piece {
                from: fields.u64(8),
                bytes: fields.u64(32),
                to: fields.u64(24),
            },
            bytes: fields.u64(40),
        };
        if fields.u32(0) == PT_LOAD && (segment.bytes, segment.piece.bytes) != (0, 0) {
            check_segment(segment, have)?;
            segments.push(segment);
        }
    }
    segments.sort_by_key(|segment| segment.piece.to);
    for pair in segments.windows(2) {
        if pair[0].end() > pair[1].piece.to {
            return Err(pair[1].refused("where another one already is"));
        }
    }
    match segments.is_empty() {
        true => Err(KernelError::NoSegments),
        false => Ok(segments),
    }
}

fn check_segment(segment: Segment, have: u64) -> Result<(), KernelError> {
    let Segment { piece, bytes, .. } = segment;
    if piece.bytes > bytes {
        return Err(segment.refused("less than the file has of it"));
    }
    let announced = piece.from.saturating_add(piece.bytes);
    // Zeros alone are nowhere in the file.
    if piece.bytes > 0 && announced > have {
        return Err(KernelError::Truncated { announced, have });
    }
    if piece.to < layout::KERNEL {
        return Err(segment.refused("below 1 MiB, where boot parameters and tables lie"));
    }
    match piece.to.checked_add(bytes) {
        Some(end) if end <= layout::LOW_RAM_END => Ok(()),
        _ => Err(segment.refused("beyond 3 GiB, where registers begin")),
    }
}

/// The setup header that a kernel at `start..end` would have as a bzImage, as far as a running kernel looks at it.
fn setup_header(start: u64, end: u64) -> Vec<u8> {
    let mut page = [0; HEADER_END];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1FE, &[0x55, 0xAA]);
    // A jump over the header, whose second byte says where that ends.
    put(0x200, &[0xEB, (HEADER_END - 0x202) as u8]);
    put(0x202, b"HdrS");
    // Protocol 2.12: the first with the fields below.
    put(0x206, &0x020C_u16.to_le_bytes());
    // LOADED_HIGH. KASLR_FLAG is clear.
    put(0x211, &[1]);
    put(0x22C, &INITRD_LIMIT.to_le_bytes());
    // Alignment, 2 MiB.
    put(0x230, &0x20_0000_u32.to_le_bytes());
    // XLF_KERNEL_64.
    put(0x236, &1_u16.to_le_bytes());
    put(0x238, &(CMDLINE_LIMIT as u32).to_le_bytes());
    put(0x258, &start.to_le_bytes());
    put(0x260, &((end - start) as u32).to_le_bytes());
    page[HEADER_AT..].to_vec()
}
