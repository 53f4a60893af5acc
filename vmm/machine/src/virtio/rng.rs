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

    use page_share::{Gfn, Options, PageRun, Region, State};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::memory::GuestRam;
    use crate::virtio::testing::{BUFFERS, Driver, MEMORY, WRITE, desc, survive_hostile_rings};

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
    fn rings_stay_in_place_while_a_driver_uses_them_and_no_longer() {
        let ram = Arc::new(GuestRam::new(MEMORY).unwrap());
        for page in 0..MEMORY / 4096 {
            ram.view().write_obj(7u8, GuestAddress(page * 4096)).unwrap();
        }
        let ranges = ram.ranges().unwrap();
        let options = Options::default().with_store_bytes(4 << 20);
        let region = ram.manage(|| Region::adopt(ranges, options)).unwrap();
        let device = Arc::new(Mutex::new(Rng::new().unwrap()));
        let driver = Driver::start_with(device, Arc::clone(&ram));
        let all = PageRun::new(Gfn::new(0), (MEMORY / 4096) as u32);
        let in_place = || {
            region.compress(all);
            let pages = (0..all.count).filter(|page| region.state(Gfn::new(*page)) == State::Private);
            pages.collect::<Vec<_>>()
        };
        let kept = in_place();
        assert!(
            (1..=3).contains(&kept.len()),
            "descriptors and two rings: {kept:?}"
        );
        driver.write(0x70, 0);
        assert_eq!(in_place(), [0; 0], "after a reset they are pages like others");
    }

    #[test]
    fn a_giant_request_gets_a_bounded_answer() {
        let mut driver = Driver::start(Arc::new(Mutex::new(Rng::new().unwrap())));
        driver.describe(0, 0, &[desc(BUFFERS, 1 << 20, WRITE, 0)]);
        assert_eq!(driver.complete(0, 0), MOST as u32);
    }
}
