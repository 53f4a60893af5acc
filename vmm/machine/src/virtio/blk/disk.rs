//! Where a disk's bytes are, and who else may use them at the same time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

/// Bytes in a sector, the unit in which guests address disks.
pub(super) const SECTOR: u64 = 512;

/// A disk's bytes. All ranges are inside [`len`](Disk::len); the device checks that.
pub trait Disk: Send {
    /// Size in bytes, whole sectors.
    fn len(&self) -> u64;

    /// Whether the disk has no sectors.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the 4 KiB at `at` are of an image that other guests may read as well, and not this guest's own.
    fn is_common(&self, _at: u64) -> bool {
        false
    }

    /// Reads all of `into` from `at`.
    ///
    /// # Errors
    /// What the host says.
    fn read(&mut self, into: &mut [u8], at: u64) -> io::Result<()>;

    /// Writes all of `from` to `at`.
    ///
    /// # Errors
    /// What the host says, for example that it is full.
    fn write(&mut self, from: &[u8], at: u64) -> io::Result<()>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// What the host says.
    fn flush(&mut self) -> io::Result<()>;
}

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum DiskError {
    /// The image cannot be opened.
    #[error("disk {path}: cannot open it for {mode}; check the path and its permissions", path = path.display())]
    Open {
        path: PathBuf,
        mode: &'static str,
        #[source]
        source: io::Error,
    },
    /// Another process has the image.
    #[error(
        "disk {path}: in use by another guest; stop that guest, or share the image by giving both guests overlay=on \
         or readonly=on", path = path.display()
    )]
    InUse { path: PathBuf },
    /// The file is not a disk image.
    #[error("disk {path}: {what}; give a raw image", path = path.display())]
    NotAnImage { path: PathBuf, what: String },
    /// The file that is to be the private layer cannot be one.
    #[error("disk {path}: {layer} is not a layer of it ({what}); give an empty file, or the layer that was written over this image", path = path.display(), layer = layer.display())]
    Layer {
        path: PathBuf,
        layer: PathBuf,
        what: String,
    },
    /// There is no place for what the guest writes.
    #[error("disk {path}: cannot create its overlay in {directory}; free space there or set TMPDIR", path = path.display(), directory = directory.display())]
    Overlay {
        path: PathBuf,
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// How an image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// One guest writes it: no other guest may have it.
    Exclusive,
    /// Guests only read it: any number may.
    Shared,
}

/// A raw image in a file or on a block device.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    len: u64,
    access: Access,
}

impl RawDisk {
    /// Opens and locks the image at `path`. The lock goes with the process.
    ///
    /// # Errors
    /// When it cannot be opened, is in use, or is not a raw image.
    pub fn open(path: &Path, access: Access) -> Result<Self, DiskError> {
        let writable = access == Access::Exclusive;
        let mode = if writable { "writing" } else { "reading" };
        let open_error = |source| DiskError::Open {
            path: path.to_owned(),
            mode,
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            .open(path)
            .map_err(open_error)?;
        let locked = match access {
            Access::Exclusive => file.try_lock(),
            Access::Shared => file.try_lock_shared(),
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(DiskError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(e)) => return Err(open_error(e)),
        }
        let len = image_len(&file, path)?;
        Ok(Self { file, len, access })
    }
}

fn image_len(mut file: &File, path: &Path) -> Result<u64, DiskError> {
    let wrong = |what: String| DiskError::NotAnImage {
        path: path.to_owned(),
        what,
    };
    let meta = file.metadata().map_err(|e| wrong(e.to_string()))?;
    let kind = meta.file_type();
    let len = if kind.is_file() {
        meta.len()
    } else if kind.is_block_device() {
        // A block device's size is where its end is.
        io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(|e| wrong(e.to_string()))?
    } else {
        return Err(wrong("neither a file nor a block device".into()));
    };
    if len == 0 || !len.is_multiple_of(SECTOR) {
        return Err(wrong(format!(
            "its {len} bytes are not a positive number of 512-byte sectors"
        )));
    }
    let mut magic = [0; 4];
    if file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"QFI\xFB" {
        return Err(wrong("a qcow2 image".into()));
    }
    Ok(len)
}

impl Disk for RawDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn is_common(&self, _at: u64) -> bool {
        self.access == Access::Shared
    }

    fn read(&mut self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(into, at)
    }

    fn write(&mut self, from: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(from, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}
