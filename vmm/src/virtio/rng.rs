//! virtio-rng: entropy from the host's kernel (virtio 1.2, 5.4 "Entropy Device").

use std::fs::File;
use std::io::{self, Read};

use super::{Chain, DeviceKind, Fault, Malformed, Rings, Turn, VirtioDevice};

const QUEUE: [u16; 1] = [64];
/// Most bytes one request gets; drivers ask again for more.
const MOST: usize = 4096;

/// An entropy device.
#[derive(Debug)]
pub struct Rng {
    source: File,
}

impl Rng {
    /// A device that reads the host's `/dev/urandom`.
    ///
    /// # Errors
    /// When that cannot be opened.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            source: File::open("/dev/urandom")?,
        })
    }

    fn serve(&mut self, chain: &mut Chain<'_>) -> Result<(), Malformed> {
        let mut bytes = [0; 256];
        let mut left = chain.writable().min(MOST);
        while left > 0 {
            let part = left.min(bytes.len());
            if let Err(e) = self.source.read_exact(&mut bytes[..part]) {
                log::error!("the host's /dev/urandom failed, the guest gets less entropy: {e}");
                return Ok(());
            }
            chain.write(&bytes[..part])?;
            left -= part;
        }
        Ok(())
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE
    }

    fn read_config(&self, _offset: usize, data: &mut [u8]) {
        data.fill(0);
    }

    fn queue_ready(&mut self, index: usize, rings: &mut Rings) -> Result<Turn, Fault> {
        rings.serve(index, |chain| self.serve(chain))
    }
}
