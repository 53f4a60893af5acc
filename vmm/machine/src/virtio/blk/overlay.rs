//! A shared read-only image under a private layer: any number of guests boot from one file.
//!
//! The layer is a sparse file that takes only the space of what was written. Usually it has no name and is gone with
//! the process however that ends; a guest's flush therefore has nothing to make durable. A layer that its owner
//! keeps outlives the process: behind the disk's bytes lies the map of what was written, so that the next process finds
//! it.
//!
//! ```text
//! 0                     the disk's bytes, blocks that were written
//! size, whole blocks    "LEVYLAY1", size of the disk (u64)
//! + 16                  the map: one bit per block, words of 64 bits, little endian
//! ```

use std::fs::{File, TryLockError};
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
    /// Where the map lies in the layer, if it is kept.
    map: Option<u64>,
}

/// What the map of a kept layer begins with.
const MAGIC: [u8; 8] = *b"LEVYLAY1";

/// Bytes in front of the map: the magic and the disk's size.
const HEADER: u64 = 16;

impl OverlayDisk {
    /// Opens `base` for sharing and puts an empty layer into the directory `layers`.
    ///
    /// # Errors
    /// When the base cannot be used or the directory cannot hold a file.
    pub fn open(base: &Path, layers: &Path) -> Result<Self, DiskError> {
        let disk = RawDisk::open(base, Access::Shared)?;
        let layer = Self::nameless_layer(base, layers)?;
        layer.set_len(disk.len()).map_err(|source| DiskError::Overlay {
            path: base.to_owned(),
            directory: layers.to_owned(),
            source,
        })?;
        let written = Bitmap::new(disk.len().div_ceil(BLOCK));
        Ok(Self {
            base: disk,
            layer,
            written,
            map: None,
        })
    }

    /// Opens `base` for sharing under the layer at `kept`, a file that is empty or was a layer of this image before.
    ///
    /// # Errors
    /// When the base cannot be used, or the file is in use or something else than a layer of it.
    pub fn over_layer(base: &Path, kept: &Path) -> Result<Self, DiskError> {
        let disk = RawDisk::open(base, Access::Shared)?;
        let wrong = |what: String| DiskError::Layer {
            path: base.to_owned(),
            layer: kept.to_owned(),
            what,
        };
        let layer = File::options().read(true).write(true).open(kept);
        let layer = layer.map_err(|error| wrong(error.to_string()))?;
        layer.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => wrong("another guest uses it".to_owned()),
            TryLockError::Error(error) => wrong(error.to_string()),
        })?;
        let (at, blocks) = (disk.len().next_multiple_of(BLOCK), disk.len().div_ceil(BLOCK));
        let written = recall(&layer, at, disk.len()).map_err(|error| wrong(error.to_string()))?;
        Ok(Self {
            base: disk,
            layer,
            written: written.unwrap_or_else(|| Bitmap::new(blocks)),
            map: Some(at + HEADER),
        })
    }

    /// A file for a layer over `base` in the directory `layers`, without a name.
    ///
    /// # Errors
    /// When the directory cannot hold a file.
    pub fn nameless_layer(base: &Path, layers: &Path) -> Result<File, DiskError> {
        File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(layers)
            .map_err(|source| DiskError::Overlay {
                path: base.to_owned(),
                directory: layers.to_owned(),
                source,
            })
    }

    /// Where layers go unless the user says otherwise: `TMPDIR`, or else `/var/tmp`, which is on a disk.
    pub fn default_directory() -> PathBuf {
        std::env::var_os("TMPDIR")
            .filter(|dir| !dir.is_empty())
            .map_or_else(|| "/var/tmp".into(), PathBuf::from)
    }

    /// Gives the layer a whole block, taken from the base, so that part of it can be overwritten.
    fn copy_up(&mut self, block: u64) -> io::Result<()> {
        let at = block * BLOCK;
        let mut bytes = [0; BLOCK as usize];
        let len = (self.base.len() - at).min(BLOCK) as usize;
        self.base.read(&mut bytes[..len], at)?;
        self.layer.write_all_at(&bytes[..len], at)
    }

    /// Notes that the layer has the blocks from `first` to `last`; in a kept layer for the next process too.
    fn note(&mut self, first: u64, last: u64) -> io::Result<()> {
        if let Some(map) = self.map
            && !(first..=last).all(|block| self.written.get(block))
        {
            let words = self.written.words_with(first, last);
            self.layer.write_all_at(&words, map + first / 64 * 8)?;
        }
        (first..=last).for_each(|block| self.written.set(block));
        Ok(())
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
            self.note(first, first)?;
        }
        if !end.is_multiple_of(BLOCK) && !self.written.get(last) {
            self.copy_up(last)?;
            self.note(last, last)?;
        }
        self.layer.write_all_at(from, at)?;
        self.note(first, last)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The map of a layer that is kept; none, and a new one prepared, where the file is empty.
fn recall(layer: &File, at: u64, disk: u64) -> io::Result<Option<Bitmap>> {
    let mut written = Bitmap::new(disk.div_ceil(BLOCK));
    let length = at + HEADER + written.0.len() as u64 * 8;
    let mut header = [0; HEADER as usize];
    let (magic, size) = header.split_at_mut(8);
    match layer.metadata()?.len() {
        0 => {
            layer.set_len(length)?;
            magic.copy_from_slice(&MAGIC);
            size.copy_from_slice(&disk.to_le_bytes());
            layer.write_all_at(&header, at)?;
            return Ok(None);
        }
        found if found != length => {
            return Err(io::Error::other(format!("it has {found} bytes, not {length}")));
        }
        _ => layer.read_exact_at(&mut header, at)?,
    }
    if header[..8] != MAGIC || header[8..] != disk.to_le_bytes() {
        return Err(io::Error::other("its map is missing"));
    }
    let mut bytes = vec![0; written.0.len() * 8];
    layer.read_exact_at(&mut bytes, at + HEADER)?;
    for (word, bytes) in written.0.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.try_into().map_or(0, u64::from_le_bytes);
    }
    Ok(Some(written))
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

    /// The words that blocks `first` to `last` are in, as they are with all these blocks set.
    fn words_with(&self, first: u64, last: u64) -> Vec<u8> {
        let mut changed = Self(self.0[(first / 64) as usize..=(last / 64) as usize].to_vec());
        let base = first / 64 * 64;
        (first..=last).for_each(|block| changed.set(block - base));
        changed.0.into_iter().flat_map(u64::to_le_bytes).collect()
    }
}
