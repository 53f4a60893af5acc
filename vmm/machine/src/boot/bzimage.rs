//! The Linux bzImage: its setup header, and the protected-mode part behind it (boot.rst, "The Real-Mode Kernel Header").

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout;

/// Offset of the 64-bit entry point from the start of the protected-mode part.
pub(super) const ENTRY_64: u64 = 0x200;

/// Where the setup header lies, in the file and in `boot_params` alike.
pub(super) const HEADER_AT: usize = 0x1F1;
/// The part of the file that holds every header field of every protocol version.
const HEAD: usize = 0x290;
const SECTOR: u64 = 512;
/// First boot protocol with `xloadflags`, `pref_address` and `init_size` (2.12, Linux 3.8).
const OLDEST_PROTOCOL: u16 = 0x020C;
const XLF_KERNEL_64: u16 = 1;

/// Why a file cannot be booted as a kernel.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum KernelError {
    /// The file cannot be opened or read.
    #[error("cannot read it ({0}); give a readable bzImage with --kernel")]
    Unreadable(io::Error),
    /// There is no setup header.
    #[error(
        "not a bzImage (no setup header); give the file that /boot/vmlinuz-* is, not vmlinux and not another \
         architecture's image"
    )]
    NotBzImage,
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
}

/// An opened kernel whose header was checked.
pub(super) struct Kernel {
    file: File,
    head: Vec<u8>,
    body_at: u64,
    body_bytes: u64,
}

impl Kernel {
    pub(super) fn open(path: &Path) -> Result<Self, KernelError> {
        let mut file = File::open(path).map_err(KernelError::Unreadable)?;
        let have = file.metadata().map_err(KernelError::Unreadable)?.len();
        let mut head = Vec::with_capacity(HEAD);
        (&mut file)
            .take(HEAD as u64)
            .read_to_end(&mut head)
            .map_err(KernelError::Unreadable)?;
        if head.get(0x1FE..0x200) != Some(&[0x55, 0xAA]) || head.get(0x202..0x206) != Some(b"HdrS") {
            return Err(KernelError::NotBzImage);
        }
        if head.len() < HEAD {
            let announced = HEAD as u64;
            return Err(KernelError::Truncated { announced, have });
        }
        let mut kernel = Self {
            file,
            head,
            body_at: 0,
            body_bytes: 0,
        };
        kernel.check(have)?;
        Ok(kernel)
    }

    fn check(&mut self, have: u64) -> Result<(), KernelError> {
        let version = self.u16(0x206);
        if version < OLDEST_PROTOCOL {
            let (major, minor) = (version >> 8, version & 0xFF);
            return Err(KernelError::OldProtocol { major, minor });
        }
        if self.u16(0x236) & XLF_KERNEL_64 == 0 {
            return Err(KernelError::ThirtyTwoBit);
        }
        let setup_sectors = match self.head[HEADER_AT] {
            0 => 4,
            n => u64::from(n),
        };
        self.body_at = (setup_sectors + 1) * SECTOR;
        self.body_bytes = u64::from(self.u32(0x1F4)) * 16;
        let announced = self.body_at + self.body_bytes;
        // syssize counts paragraphs of 16 bytes, rounded up.
        if self.body_bytes == 0 || have + 15 < announced {
            return Err(KernelError::Truncated { announced, have });
        }
        self.body_bytes = self.body_bytes.min(have - self.body_at);
        Ok(())
    }

    /// Copies the protected-mode part to its place.
    pub(super) fn load(&self, memory: &GuestMemoryMmap) -> Result<(), KernelError> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.body_at))
            .map_err(KernelError::Unreadable)?;
        let bytes = self.body_bytes;
        memory
            .read_exact_volatile_from(GuestAddress(layout::KERNEL), &mut file, bytes as usize)
            .map_err(|_| KernelError::DoesNotFit { bytes })
    }

    /// The setup header as it goes into `boot_params`.
    pub(super) fn header(&self) -> &[u8] {
        // boot.rst: the header ends at 0x202 plus the byte at 0x201.
        let end = (0x202 + usize::from(self.head[0x201])).min(HEAD);
        &self.head[HEADER_AT..end]
    }

    /// First address behind everything the kernel uses before it reads the memory map: where it unpacks to
    /// (`pref_address` or where it was loaded, whichever is higher), plus `init_size`.
    pub(super) fn end(&self) -> u64 {
        let unpacked_at = self.u64(0x258).max(layout::KERNEL);
        unpacked_at
            .saturating_add(u64::from(self.u32(0x260)))
            .min(1 << 40)
    }

    /// Highest address an initrd may have.
    pub(super) fn initrd_limit(&self) -> u64 {
        u64::from(self.u32(0x22C))
    }

    /// Most bytes of command line, the final zero not counted.
    pub(super) fn cmdline_limit(&self) -> usize {
        // The command line's place in the layout has this much room, too.
        (self.u32(0x238) as usize).min(0xFFFF)
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.head[at], self.head[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }
}
