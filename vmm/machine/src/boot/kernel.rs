//! A kernel file, checked: which of its bytes go where, and what `boot_params` says of it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{bzimage, elf};

/// Where the setup header lies, in a bzImage and in `boot_params` alike (boot.rst, "The Real-Mode Kernel Header").
pub(super) const HEADER_AT: usize = 0x1F1;
/// The part of `boot_params` that holds every header field of every protocol version.
pub(super) const HEAD: usize = 0x290;

/// Why a file cannot be booted as a kernel.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum KernelError {
    /// The file cannot be opened or read.
    #[error("cannot read it ({0}); give a readable bzImage or vmlinux with --kernel")]
    Unreadable(#[source] io::Error),
    /// There is neither a setup header nor an ELF header.
    #[error(
        "not a bzImage (no setup header) and not a vmlinux (no ELF header); give the file that /boot/vmlinuz-* is, or \
         the vmlinux it was made from, and not another architecture's image"
    )]
    NotKernel,
    /// The header is from an older protocol.
    #[error("boot protocol {major}.{minor} is too old; Linux 3.8 or later (protocol 2.12) is needed")]
    OldProtocol { major: u16, minor: u16 },
    /// The kernel has no 64-bit entry point.
    #[error("this is a 32-bit kernel; give one built for amd64 (x86_64)")]
    ThirtyTwoBit,
    /// The file ends before its header says.
    #[error("the file is truncated: its header announces {announced} bytes, it has {have}; fetch it again")]
    Truncated { announced: u64, have: u64 },
    /// The kernel does not fit into guest memory.
    #[error("the kernel's {bytes} bytes do not fit into guest memory; give more with --memory size=")]
    DoesNotFit { bytes: u64 },
    /// The ELF file is no kernel of this machine.
    #[error(
        "not a vmlinux for amd64 (x86_64): its ELF header has {field} {value}, such a kernel has {right}"
    )]
    NotVmlinux {
        field: &'static str,
        value: u64,
        right: u64,
    },
    /// A segment of a vmlinux cannot be loaded where it wants to be.
    #[error(
        "program header {number} wants {bytes} bytes at {address:#x}, {why}; give an unchanged vmlinux, or the bzImage"
    )]
    Segment {
        number: usize,
        bytes: u64,
        address: u64,
        why: &'static str,
    },
    /// There is nothing to load.
    #[error("the ELF file has no segment to load (PT_LOAD); give an unchanged vmlinux, or the bzImage")]
    NoSegments,
    /// The first instruction is not in the file.
    #[error(
        "the entry point {entry:#x} is in no segment of the ELF file; give an unchanged vmlinux, or the bzImage"
    )]
    Entry { entry: u64 },
}

/// Bytes of the file and where they go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Their offset in the file.
    pub(super) from: u64,
    pub(super) bytes: u64,
    /// Their guest-physical address.
    pub(super) to: u64,
}

/// What a kernel's file says of it. Every piece lies inside the file.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) pieces: Vec<Piece>,
    /// The setup header as it goes into `boot_params`, from [`HEADER_AT`] on.
    pub(super) header: Vec<u8>,
    /// Guest-physical address of the first instruction.
    pub(super) entry: u64,
    /// First address behind everything the kernel uses before it reads the memory map.
    pub(super) end: u64,
    /// Highest address an initrd may have.
    pub(super) initrd_limit: u64,
    /// Most bytes of command line, the final zero not counted.
    pub(super) cmdline_limit: usize,
}

/// An opened kernel whose headers were checked.
#[derive(Debug)]
pub(super) struct Kernel {
    file: File,
    pub(super) image: Image,
}

impl Kernel {
    /// Opens the file at `path`, a vmlinux or a bzImage by what it begins with.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub(super) fn open(path: &Path) -> Result<Self, KernelError> {
        let (mut file, have) = super::open_regular(path).map_err(KernelError::Unreadable)?;
        let head = read_at(&mut file, 0, HEAD)?;
        let image = match head.starts_with(elf::MAGIC) {
            true => elf::read(&mut file, &head, have)?,
            false => bzimage::read(&head, have)?,
        };
        Ok(Self { file, image })
    }

    /// Copies the kernel to its place.
    pub(super) fn load(&self, memory: &GuestMemoryMmap) -> Result<(), KernelError> {
        let mut file = &self.file;
        for piece in &self.image.pieces {
            let bytes = piece.bytes;
            file.seek(SeekFrom::Start(piece.from))
                .map_err(KernelError::Unreadable)?;
            memory
                .read_exact_volatile_from(GuestAddress(piece.to), &mut file, bytes as usize)
                .map_err(|_| KernelError::DoesNotFit { bytes })?;
        }
        Ok(())
    }
}

/// Up to `bytes` bytes from `at` on; fewer where the file ends.
pub(super) fn read_at(file: &mut File, at: u64, bytes: usize) -> Result<Vec<u8>, KernelError> {
    let mut read = Vec::with_capacity(bytes);
    file.seek(SeekFrom::Start(at))
        .and_then(|_| file.take(bytes as u64).read_to_end(&mut read))
        .map_err(KernelError::Unreadable)?;
    Ok(read)
}

/// Numbers of a header, little-endian. Every caller has checked that the header is long enough.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    pub(super) fn u32(self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    pub(super) fn u64(self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }
}
