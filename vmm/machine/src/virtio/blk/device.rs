//! The block device itself.

use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
};

use super::disk::{Disk, SECTOR};
use super::request::{Extent, ID_BYTES, Request, Status};
use crate::layout::PAGE_SIZE;
use crate::memory::{Gfn, GfnRange, GuestRam};
use crate::virtio::device::read_config_bytes;
use crate::virtio::{Chain, DeviceKind, Fault, Figures, Malformed, Rings, Turn, VirtioDevice};

const QUEUE: [u16; 1] = [256];
/// Most data segments of one request; a header and a status come with them.
const SEGMENTS: u32 = 126;
/// Most bytes of a segment. A driver that keeps to both never asks for more than [`LARGEST`].
const SEGMENT: u32 = 64 << 10;
/// Bytes of the largest request, for which the device's lock is held.
const LARGEST: usize = SEGMENTS as usize * SEGMENT as usize;
/// What is moved between the disk and the guest at a time.
const BOUNCE: usize = 64 << 10;

/// Counters of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct BlockStats {
    /// Requests to read that succeeded.
    pub reads: u64,
    /// Bytes they read.
    pub read_bytes: u64,
    /// Requests to write that succeeded.
    pub writes: u64,
    /// Bytes they wrote.
    pub written_bytes: u64,
    /// Requests that the host could not carry out.
    pub host_errors: u64,
    /// Requests that asked for what the disk does not have.
    pub refused: u64,
}

/// A disk for one guest. Requests are served one after the other.
pub struct Block {
    disk: Box<dyn Disk>,
    writable: bool,
    id: [u8; ID_BYTES],
    latency: Duration,
    bounce: Vec<u8>,
    stats: Figures<BlockStats>,
    /// The guest's memory, where reads of what other guests read too are worth a word to the engine that looks for
    /// equal pages.
    hints: Option<Arc<GuestRam>>,
}

impl Block {
    /// A device over `disk`; `id` is the serial number the guest sees, cut to 20 bytes.
    pub fn new(disk: Box<dyn Disk>, id: &str) -> Self {
        let mut bytes = [0; ID_BYTES];
        let len = id.len().min(ID_BYTES);
        bytes[..len].copy_from_slice(&id.as_bytes()[..len]);
        Self {
            disk,
            writable: true,
            id: bytes,
            latency: Duration::ZERO,
            bounce: Vec::new(),
            stats: Figures::default(),
            hints: None,
        }
    }

    /// Tells the manager of `ram` which pages were filled from an image that other guests may read too.
    pub fn tell_of_common_reads(&mut self, ram: Arc<GuestRam>) {
        self.hints = Some(ram);
    }

    /// Refuses writes, and tells the guest.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.writable = false;
        self
    }

    /// Makes every request take at least `latency`, one after the other: a device of 1/`latency` requests a second.
    #[must_use]
    pub fn with_latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    /// The counters so far.
    pub fn stats(&self) -> BlockStats {
        self.stats.get()
    }

    /// The counters, to be read without the disk's lock.
    pub fn figures(&self) -> Figures<BlockStats> {
        self.stats.clone()
    }

    fn serve(&mut self, chain: &mut Chain<'_>) -> Result<(), Malformed> {
        let begin = Instant::now();
        let status = match Request::parse(chain, self.disk.len(), LARGEST)? {
            Request::Read(extent) => self.read(extent, chain)?,
            Request::Write(_) if !self.writable => Status::IoError,
            Request::Write(extent) => self.write(extent, chain)?,
            Request::Flush => match self.disk.flush() {
                Ok(()) => Status::Ok,
                Err(e) => self.host_error("flush", &e),
            },
            Request::Identify => {
                let room = chain.writable().saturating_sub(1).min(ID_BYTES);
                let id = self.id;
                chain.write(&id[..room])?;
                Status::Ok
            }
            Request::Refuse(status) => {
                self.stats.change(|stats| stats.refused += 1);
                status
            }
        };
        chain.skip_writable_to(1)?;
        chain.write(&[status.byte()])?;
        if let Some(rest) = self.latency.checked_sub(begin.elapsed()) {
            thread::sleep(rest);
        }
        Ok(())
    }

    fn read(&mut self, extent: Extent, chain: &mut Chain<'_>) -> Result<Status, Malformed> {
        let mut done = 0;
        while done < extent.len {
            let part = (extent.len - done).min(BOUNCE);
            let at = extent.at + done as u64;
            if let Err(e) = self.disk.read(&mut self.bounce[..part], at) {
                return Ok(self.host_error("read", &e));
            }
            let pages = self.common_pages(at, part, chain);
            chain.write(&self.bounce[..part])?;
            if let Some(ram) = &self.hints {
                pages.into_iter().for_each(|page| ram.expect_equal(page));
            }
            done += part;
        }
        self.stats.change(|stats| {
            stats.reads += 1;
            stats.read_bytes += done as u64;
        });
        Ok(Status::Ok)
    }

    /// The whole pages among the next `len` bytes, read from `at`, that hold exactly one common block of the disk.
    fn common_pages(&self, at: u64, len: usize, chain: &Chain<'_>) -> Vec<GfnRange> {
        let mut pages: Vec<GfnRange> = Vec::new();
        if self.hints.is_none() {
            return pages;
        }
        let mut on_disk = at;
        for (to, len) in chain.destinations(len) {
            let skip = to.next_multiple_of(PAGE_SIZE) - to;
            let whole = (len as u64).saturating_sub(skip) / PAGE_SIZE;
            let first = on_disk + skip;
            if first.is_multiple_of(PAGE_SIZE) {
                for page in (0..whole).filter(|page| self.disk.is_common(first + page * PAGE_SIZE)) {
                    let frame = (to + skip) / PAGE_SIZE + page;
                    match pages.last_mut() {
                        Some(run) if run.start.number() + run.pages == frame => run.pages += 1,
                        _ => pages.push(GfnRange {
                            start: Gfn::new(frame),
                            pages: 1,
                        }),
                    }
                }
            }
            on_disk += len as u64;
        }
        pages
    }

    fn write(&mut self, extent: Extent, chain: &mut Chain<'_>) -> Result<Status, Malformed> {
        let mut done = 0;
        while done < extent.len {
            let part = (extent.len - done).min(BOUNCE);
            chain.read(&mut self.bounce[..part])?;
            if let Err(e) = self.disk.write(&self.bounce[..part], extent.at + done as u64) {
                return Ok(self.host_error("write", &e));
            }
            done += part;
        }
        self.stats.change(|stats| {
            stats.writes += 1;
            stats.written_bytes += done as u64;
        });
        Ok(Status::Ok)
    }

    fn host_error(&mut self, what: &str, error: &io::Error) -> Status {
        self.stats.change(|stats| stats.host_errors += 1);
        if self.stats().host_errors <= 3 {
            log::error!("the host cannot {what} a disk of this guest, which gets an I/O error: {error}");
        }
        Status::IoError
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        let read_only = if self.writable { 0 } else { 1 << VIRTIO_BLK_F_RO };
        let sizes = 1 << VIRTIO_BLK_F_SIZE_MAX | 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE;
        1 << VIRTIO_BLK_F_FLUSH | sizes | read_only
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut config = [0; 24];
        config[..8].copy_from_slice(&(self.disk.len() / SECTOR).to_le_bytes());
        config[8..12].copy_from_slice(&SEGMENT.to_le_bytes());
        config[12..16].copy_from_slice(&SEGMENTS.to_le_bytes());
        config[20..24].copy_from_slice(&(SECTOR as u32).to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, _features: u64, _rings: &mut Rings) -> Result<(), Fault> {
        self.bounce.resize(BOUNCE, 0);
        Ok(())
    }

    fn queue_ready(&mut self, index: usize, rings: &mut Rings) -> Result<Turn, Fault> {
        rings.serve(index, |chain| self.serve(chain))
    }
}
