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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::virtio::testing::{BUFFERS, Driver, WRITE, desc, survive_hostile_rings};

    #[test]
    fn hostile_rings_stop_the_source_until_its_reset_and_nothing_else() {
        let mut driver = Driver::start(Arc::new(Mutex::new(Rng::new().unwrap())));
        survive_hostile_rings(&mut driver, 0, |driver| {
            driver.put(BUFFERS, &[0; 64]);
            driver.describe(0, 0, &[desc(BUFFERS, 64, WRITE, 0)]);
            assert_eq!(driver.complete(0, 0), 64);
            assert_ne!(driver.get(BUFFERS, 64), [0; 64]);
        });
    }

    #[test]
    fn a_giant_request_gets_a_bounded_answer() {
        let mut driver = Driver::start(Arc::new(Mutex::new(Rng::new().unwrap())));
        driver.describe(0, 0, &[desc(BUFFERS, 1 << 20, WRITE, 0)]);
        assert_eq!(driver.complete(0, 0), MOST as u32);
    }
}
