//! From files to a guest that is ready to run its first instruction.
//!
//! The kernel, a bzImage or a vmlinux, is entered at its 64-bit entry point: paging on, the first 4 GiB mapped onto
//! themselves, RSI at `boot_params` (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"). Everything the kernel
//! then needs to know about the machine comes from `boot_params` and the ACPI tables.

mod acpi;
mod bzimage;
mod cpu;
mod cpuid;
mod elf;
mod kernel;
mod params;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress};

pub use acpi::{MmioDevice, Platform};
pub use cpu::{EntryState, set_entry_state};
pub use cpuid::cpuid_of;
pub use kernel::KernelError;

use crate::layout;
use crate::memory::GuestRam;
use kernel::{Image, Kernel};

/// What to boot.
#[derive(Clone, Debug)]
pub struct BootFiles {
    /// A 64-bit Linux kernel: a bzImage, or a vmlinux.
    pub kernel: PathBuf,
    /// An initramfs, or none.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Why a guest cannot be booted from the files given.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum BootError {
    /// The kernel file is unusable.
    #[error("kernel {path}: {source}", path = path.display())]
    Kernel { path: PathBuf, source: KernelError },
    /// The initrd cannot be read.
    #[error("initrd {path}: cannot read it; give a readable file with --initrd", path = path.display())]
    Initrd {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The guest is too small for what it boots.
    #[error(
        "memory size={have_mib}M is below what this guest boots with: kernel {kernel_mib} MiB and initrd \
         {initrd_mib} MiB; give at least --memory size={need_mib}M"
    )]
    MemoryTooSmall {
        have_mib: u64,
        kernel_mib: u64,
        initrd_mib: u64,
        need_mib: u64,
    },
    /// The command line does not fit.
    #[error("the kernel command line has {have} bytes, this kernel takes {most}; shorten --cmdline")]
    CmdlineTooLong { have: usize, most: usize },
    /// Writing into guest memory failed.
    #[error("cannot write the {what} into guest memory")]
    Memory {
        what: &'static str,
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

/// Memory a booted kernel needs beyond its own image and the initrd before it can do anything, in bytes.
const WORKING_ROOM: u64 = 32 << 20;

/// Loads kernel, initrd, command line and tables into `ram` and says how the first vCPU starts.
///
/// # Errors
/// When a file is missing, unreadable or neither a 64-bit bzImage nor a vmlinux that can be loaded, or when `ram` is too
/// small for it.
pub fn load(ram: &GuestRam, files: &BootFiles, platform: &Platform) -> Result<EntryState, BootError> {
    let kernel_error = |source| BootError::Kernel {
        path: files.kernel.clone(),
        source,
    };
    let kernel = Kernel::open(&files.kernel).map_err(kernel_error)?;
    let image = &kernel.image;
    let initrd = files.initrd.as_deref().map(Initrd::open).transpose()?;
    let initrd_at = place_initrd(ram, image, initrd.as_ref())?;
    let most = image.cmdline_limit;
    if files.cmdline.len() > most {
        let have = files.cmdline.len();
        return Err(BootError::CmdlineTooLong { have, most });
    }
    kernel.load(ram.view()).map_err(kernel_error)?;
    let ramdisk = match initrd {
        Some(initrd) => Some((initrd_at, initrd.load(ram, initrd_at)?)),
        None => None,
    };
    write(ram, "command line", layout::CMDLINE, &cstring(&files.cmdline))?;
    let rsdp = acpi::write_tables(ram, platform)?;
    let zero_page = params::zero_page(&image.header, ram.bytes(), ramdisk, rsdp);
    write(ram, "boot parameters", layout::BOOT_PARAMS, &zero_page)?;
    write(ram, "reset stub", layout::RESET_VECTOR, &acpi::RESET_STUB)?;
    cpu::write_boot_structures(ram)?;
    Ok(EntryState {
        rip: image.entry,
        boot_params: layout::BOOT_PARAMS,
    })
}

fn cstring(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn write(ram: &GuestRam, what: &'static str, at: u64, bytes: &[u8]) -> Result<(), BootError> {
    ram.view()
        .write_slice(bytes, GuestAddress(at))
        .map_err(|source| BootError::Memory { what, source })
}

/// Opens a file to load, and returns its length. A FIFO would not even open before its writer comes.
fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let meta = file.metadata()?;
    match meta.is_file() {
        true => Ok((file, meta.len())),
        false => Err(io::Error::other("not a regular file")),
    }
}

struct Initrd {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Initrd {
    fn open(path: &Path) -> Result<Self, BootError> {
        let failed = |source| BootError::Initrd {
            path: path.to_owned(),
            source,
        };
        let (file, bytes) = open_regular(path).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
        })
    }

    fn load(mut self, ram: &GuestRam, at: u64) -> Result<u64, BootError> {
        ram.view()
            .read_exact_volatile_from(GuestAddress(at), &mut self.file, self.bytes as usize)
            .map_err(|e| BootError::Initrd {
                path: self.path.clone(),
                source: io::Error::other(e.to_string()),
            })?;
        Ok(self.bytes)
    }
}

/// As high as it fits below the hole and below what the kernel can reach; never where the kernel is or unpacks itself.
fn place_initrd(ram: &GuestRam, image: &Image, initrd: Option<&Initrd>) -> Result<u64, BootError> {
    let low_end = ram.bytes().min(layout::LOW_RAM_END);
    let bytes = initrd.map_or(0, |i| i.bytes);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let too_small = || BootError::MemoryTooSmall {
        have_mib: low_end >> 20,
        kernel_mib: mib(image.end),
        initrd_mib: mib(bytes),
        // The initrd is unpacked next to itself before it is freed; four times its size is the usual ratio.
        need_mib: mib(image.end + bytes * 5 + WORKING_ROOM).next_multiple_of(8),
    };
    if image.end + bytes + WORKING_ROOM > low_end {
        return Err(too_small());
    }
    let top = low_end.min(image.initrd_limit + 1);
    let at = top.checked_sub(bytes).ok_or_else(too_small)? & !(layout::PAGE_SIZE - 1);
    if at < image.end {
        return Err(too_small());
    }
    Ok(at)
}

#[cfg(test)]
mod tests;
