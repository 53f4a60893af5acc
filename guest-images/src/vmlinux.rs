//! The kernel inside a bzImage: a vmlinux, which a VMM can load as it is and a guest need not unpack.
//!
//! The setup header says where the compressed payload lies (boot.rst, `payload_offset` and `payload_length`). Its last
//! four bytes are the size that it unpacks to.

use std::io::{self, Read};

use lz4_flex::block::decompress;
use ruzstd::decoding::StreamingDecoder as Zstd;

const SECTOR: usize = 512;
const ELF: &[u8] = b"\x7FELF";
const ZSTD: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
/// LZ4's legacy frame, the one that Linux knows: blocks, each behind its size, and no end mark.
const LZ4: [u8; 4] = [0x02, 0x21, 0x4C, 0x18];
/// Bytes that a block of it unpacks to, at most.
const LZ4_BLOCK: usize = 8 << 20;
/// As far back as zstd may refer in a kernel (`zstd_init_dstream` in lib/decompress_unzstd.c).
const ZSTD_WINDOW: u64 = 128 << 20;
/// More than any kernel has.
const MOST: usize = 512 << 20;

/// Why a bzImage has no vmlinux for us.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoVmlinux {
    #[error("its setup header names no payload inside the file")]
    NoPayload,
    #[error("its payload begins with {0:02x?}, which is neither zstd nor lz4")]
    Compression([u8; 4]),
    #[error("its payload cannot be unpacked: {0}")]
    Damaged(#[from] io::Error),
    #[error("its payload has {have} bytes unpacked, {announced} are announced")]
    Size { have: usize, announced: usize },
    #[error("its payload is no ELF file")]
    NotElf,
}

/// The vmlinux in `bzimage`.
///
/// # Errors
/// The payload is not where it should be, is compressed in another way, is damaged, or is no ELF file.
pub(crate) fn unpack(bzimage: &[u8]) -> Result<Vec<u8>, NoVmlinux> {
    let (payload, announced) = payload(bzimage).ok_or(NoVmlinux::NoPayload)?;
    let vmlinux = match payload.first_chunk() {
        Some(&ZSTD) => unpack_zstd(payload, announced)?,
        Some(&LZ4) => unpack_lz4(&payload[LZ4.len()..], announced)?,
        Some(&other) => return Err(NoVmlinux::Compression(other)),
        None => return Err(NoVmlinux::NoPayload),
    };
    if vmlinux.len() != announced {
        let have = vmlinux.len();
        return Err(NoVmlinux::Size { have, announced });
    }
    match vmlinux.starts_with(ELF) {
        true => Ok(vmlinux),
        false => Err(NoVmlinux::NotElf),
    }
}

/// The compressed bytes and their size unpacked.
fn payload(bzimage: &[u8]) -> Option<(&[u8], usize)> {
    let word = |at: usize| {
        let bytes = bzimage.get(at..)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    let setup_sectors = match bzimage.get(0x1F1)? {
        0 => 4,
        n => usize::from(*n),
    };
    let start = (setup_sectors + 1) * SECTOR + word(0x248)?;
    let payload = bzimage.get(start..start.checked_add(word(0x24C)?)?)?;
    let (compressed, size) = payload.split_last_chunk()?;
    let size = usize::try_from(u32::from_le_bytes(*size)).ok()?;
    (size <= MOST).then_some((compressed, size))
}

fn unpack_zstd(payload: &[u8], announced: usize) -> Result<Vec<u8>, NoVmlinux> {
    let decoder = Zstd::new_with_max_window_size(payload, ZSTD_WINDOW);
    let mut decoder = decoder.map_err(io::Error::other)?;
    let mut vmlinux = Vec::with_capacity(announced + 1);
    (&mut decoder)
        .take(announced as u64 + 1)
        .read_to_end(&mut vmlinux)?;
    let decoder = decoder.into_frame_decoder();
    match (
        decoder.get_checksum_from_data(),
        decoder.get_calculated_checksum(),
    ) {
        (Some(right), Some(found)) if right != found => {
            let what = format!("its checksum is {found:08x}, not {right:08x}");
            Err(NoVmlinux::Damaged(io::Error::other(what)))
        }
        _ => Ok(vmlinux),
    }
}

fn unpack_lz4(mut blocks: &[u8], announced: usize) -> Result<Vec<u8>, NoVmlinux> {
    let mut vmlinux = Vec::with_capacity(announced);
    while let Some((bytes, rest)) = blocks.split_first_chunk()
        && vmlinux.len() <= announced
    {
        let bytes = u32::from_le_bytes(*bytes) as usize;
        let block = rest.get(..bytes).ok_or(io::ErrorKind::UnexpectedEof);
        let unpacked = decompress(block.map_err(io::Error::from)?, LZ4_BLOCK);
        vmlinux.extend(unpacked.map_err(io::Error::other)?);
        blocks = &rest[bytes..];
    }
    Ok(vmlinux)
}

#[cfg(test)]
mod tests {
    use lz4_flex::block::compress;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    /// An ELF file by its first bytes, in several blocks of either compression.
    fn kernel() -> Vec<u8> {
        let mut state = 1u32;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 28) as u8
        });
        ELF.iter().copied().chain(noise).take(9 << 20).collect()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    fn lz4(bytes: &[u8]) -> Vec<u8> {
        let mut frame = LZ4.to_vec();
        for block in bytes.chunks(LZ4_BLOCK).map(compress) {
            frame.extend((block.len() as u32).to_le_bytes());
            frame.extend(block);
        }
        frame
    }

    /// A file with this payload, which announces `size` bytes.
    fn bzimage(compressed: &[u8], size: usize) -> Vec<u8> {
        let mut file = vec![0; 3 * SECTOR + 64];
        file[0x1F1] = 2;
        file[0x248..0x24C].copy_from_slice(&64u32.to_le_bytes());
        file[0x24C..0x250].copy_from_slice(&(compressed.len() as u32 + 4).to_le_bytes());
        file.extend(compressed);
        file.extend((size as u32).to_le_bytes());
        file.extend([0xEE; 100]);
        file
    }

    #[test]
    fn the_kernel_comes_out_as_it_went_in() {
        let kernel = kernel();
        for compressed in [zstd(&kernel), lz4(&kernel)] {
            let unpacked = unpack(&bzimage(&compressed, kernel.len())).unwrap();
            assert!(unpacked == kernel, "{} bytes", unpacked.len());
        }
    }

    #[test]
    fn damage_is_told_and_no_kernel_is_made_of_it() {
        let kernel = &kernel()[..1 << 20];
        for compressed in [zstd(kernel), lz4(kernel)] {
            let whole = bzimage(&compressed, kernel.len());
            for size in [kernel.len() - 1, kernel.len() + 1] {
                let error = unpack(&bzimage(&compressed, size)).unwrap_err();
                assert!(
                    matches!(error, NoVmlinux::Size { announced, .. } if announced == size),
                    "{error}"
                );
            }
            let half = &compressed[..compressed.len() / 2];
            assert!(unpack(&bzimage(half, kernel.len())).is_err());
            for end in [0, 0x1F1, 0x24E, 3 * SECTOR + 70, whole.len() - 101] {
                let error = unpack(&whole[..end]).unwrap_err();
                assert!(matches!(error, NoVmlinux::NoPayload), "{end}: {error}");
            }
        }
        let mut changed = zstd(kernel);
        let last = changed.len() - 1;
        changed[last] ^= 1;
        let error = unpack(&bzimage(&changed, kernel.len())).unwrap_err().to_string();
        assert!(error.contains("checksum"), "{error}");
    }

    #[test]
    fn what_is_not_a_compressed_elf_file_is_told() {
        let error = unpack(&bzimage(&[0xFD, b'7', b'z', b'X', b'Z'], 10)).unwrap_err();
        assert!(
            error.to_string().contains("[fd, 37, 7a, 58], which is neither"),
            "{error}"
        );
        let text = b"#!/bin/sh";
        let error = unpack(&bzimage(&zstd(text), text.len())).unwrap_err();
        assert!(matches!(error, NoVmlinux::NotElf), "{error}");
        let error = unpack(&bzimage(&zstd(text), MOST + 1)).unwrap_err();
        assert!(matches!(error, NoVmlinux::NoPayload), "{error}");
    }
}
