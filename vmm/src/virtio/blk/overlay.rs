//! A shared read-only image under a private layer: any number of guests boot from one file.
//!
//! The layer is a sparse file without a name: it takes only the space of what was written, and it is gone with the
//! process however that ends. A guest's flush therefore has nothing to make durable.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::disk::{Access, Disk, DiskError, RawDisk};

/// Bytes per copy-on-write block.
const BLOCK: u64 = 4096;

/// A base image and what one guest wrote over it.
#[derive(Debug)]
pub struct OverlayDisk {
    base: RawDisk,
    layer: File,
    written: Bitmap,
}

impl OverlayDisk {
    /// Opens `base` for sharing and puts an empty layer into the directory `layers`.
    ///
    /// # Errors
    /// When the base cannot be used or the directory cannot hold a file.
    pub fn open(base: &Path, layers: &Path) -> Result<Self, DiskError> {
        let disk = RawDisk::open(base, Access::Shared)?;
        let layer_error = |source| DiskError::Overlay {
            path: base.to_owned(),
            directory: layers.to_owned(),
            source,
        };
        let layer = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(layers)
            .map_err(layer_error)?;
        layer.set_len(disk.len()).map_err(layer_error)?;
        let written = Bitmap::new(disk.len().div_ceil(BLOCK));
        Ok(Self {
            base: disk,
            layer,
            written,
        })
    }

    /// Where layers go unless the user says otherwise: `TMPDIR`, or else `/var/tmp`, which is on a disk.
    pub fn default_directory() -> PathBuf {
        std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from)
    }

    /// Bytes of the blocks that the guest wrote.
    pub fn written_bytes(&self) -> u64 {
        self.written.count() * BLOCK
    }

    /// Gives the layer a whole block, taken from the base, so that part of it can be overwritten.
    fn copy_up(&mut self, block: u64) -> io::Result<()> {
        let at = block * BLOCK;
        let mut bytes = [0; BLOCK as usize];
        let len = (self.base.len() - at).min(BLOCK) as usize;
        self.base.read(&mut bytes[..len], at)?;
        self.layer.write_all_at(&bytes[..len], at)
    }
}

impl Disk for OverlayDisk {
    fn len(&self) -> u64 {
        self.base.len()
    }

    fn is_common(&self, at: u64) -> bool {
        !self.written.get(at / BLOCK)
    }

    fn read(&mut self, into: &mut [u8], at: u64) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            let from = at + done as u64;
            let (in_layer, end) = self
                .written
                .run(from / BLOCK, (at + into.len() as u64).div_ceil(BLOCK));
            let len = (end * BLOCK - from).min((into.len() - done) as u64) as usize;
            let part = &mut into[done..done + len];
            match in_layer {
                true => self.layer.read_exact_at(part, from)?,
                false => self.base.read(part, from)?,
            }
            done += len;
        }
        Ok(())
    }

    fn write(&mut self, from: &[u8], at: u64) -> io::Result<()> {
        let end = at + from.len() as u64;
        let (first, last) = (at / BLOCK, end.saturating_sub(1) / BLOCK);
        // Only the two ends can be partial; what lies between is overwritten as a whole.
        if !at.is_multiple_of(BLOCK) && !self.written.get(first) {
            self.copy_up(first)?;
            self.written.set(first);
        }
        if !end.is_multiple_of(BLOCK) && !self.written.get(last) {
            self.copy_up(last)?;
            self.written.set(last);
        }
        self.layer.write_all_at(from, at)?;
        (first..=last).for_each(|block| self.written.set(block));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Which blocks the layer has.
#[derive(Debug)]
struct Bitmap(Vec<u64>);

impl Bitmap {
    fn new(blocks: u64) -> Self {
        Self(vec![0; blocks.div_ceil(64) as usize])
    }

    fn get(&self, block: u64) -> bool {
        self.0[(block / 64) as usize] & 1 << (block % 64) != 0
    }

    fn set(&mut self, block: u64) {
        self.0[(block / 64) as usize] |= 1 << (block % 64);
    }

    /// Whether block `start` is set, and the first block up to `limit` for which that is different.
    fn run(&self, start: u64, limit: u64) -> (bool, u64) {
        let first = self.get(start);
        let end = (start + 1..limit).find(|&block| self.get(block) != first);
        (first, end.unwrap_or(limit))
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}
