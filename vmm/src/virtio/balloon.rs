//! virtio-balloon: the device of the `balloon-driver` crate, plugged into this VMM.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use balloon_driver::release::{Reason, Release, Released};
use balloon_driver::{Balloon as Device, DeviceError, FRAME_SIZE, Frame, Offer, Options, Progress, Run};
use serde_json::{Map, Value, json};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::timerfd::TimerFd;

use super::{DeviceKind, Fault, Interest, Interrupt, Rings, Turn, VirtioDevice};
use crate::config::BalloonConfig;
use crate::link::BalloonReport;
use crate::memory::{Gfn, GfnRange, GuestRam};

/// Frames in a MiB.
const FRAMES_PER_MIB: u64 = (1 << 20) / FRAME_SIZE;
const POLL: usize = 0;

/// The balloon of one guest.
pub struct Balloon {
    device: Device<Arc<GuestMemoryMmap>, RamPort>,
    queue_sizes: Vec<u16>,
    timer: Option<TimerFd>,
}

impl Balloon {
    /// A balloon for the guest whose memory is `ram`.
    ///
    /// # Errors
    /// When the host has no timer for the guest's figures.
    pub fn new(config: &BalloonConfig, ram: &Arc<GuestRam>) -> io::Result<Self> {
        let offer = |wanted| if wanted { Offer::On } else { Offer::Off };
        let polls = !config.stats_polling_interval.is_zero();
        let options = Options {
            deflate_on_oom: offer(config.deflate_on_oom),
            free_page_reporting: offer(config.free_page_reporting),
            statistics: offer(polls),
            free_page_hinting: Offer::Off,
            page_poison: offer(config.free_page_reporting),
        };
        let mut device = Device::new(options, RamPort(Arc::clone(ram)));
        // There is no driver yet to interrupt.
        device
            .set_target(config.bytes / FRAME_SIZE)
            .map_err(io::Error::other)?;
        let timer = polls.then(|| timer(config.stats_polling_interval)).transpose()?;
        Ok(Self {
            queue_sizes: device.queue_sizes(),
            device,
            timer,
        })
    }

    /// Asks the guest to give up `mib` MiB in all, at most what it has.
    ///
    /// # Errors
    /// When the guest cannot be interrupted.
    pub fn set_target_mib(&mut self, mib: u64) -> Result<(), DeviceError> {
        self.device.set_target(mib.saturating_mul(FRAMES_PER_MIB))
    }

    /// Asks the guest to give up `pages` pages of 4 KiB in all, at most what it has.
    ///
    /// # Errors
    /// When the guest cannot be interrupted.
    pub fn set_target_pages(&mut self, pages: u64) -> Result<(), DeviceError> {
        self.device.set_target(pages)
    }

    /// What the balloon's manager wants to know.
    pub fn report(&self) -> BalloonReport {
        let latest = self.device.statistics();
        let values = latest.iter().flat_map(|latest| latest.values.iter());
        BalloonReport {
            target_pages: self.device.target(),
            actual_pages: self.device.ballooned(),
            unresponsive: !self.device.is_active(),
            statistics: values.map(|(_, name, value)| (name.to_owned(), value)).collect(),
            statistics_age_seconds: latest.map(|latest| latest.age(Instant::now()).as_secs_f64()),
        }
    }

    /// The balloon's figures; what the guest claims stands apart from what the host knows.
    pub fn figures(&self) -> Value {
        let mib = |frames: u64| frames / FRAMES_PER_MIB;
        let counters = self.device.counters();
        json!({
            "target_mib": mib(self.device.target()),
            "ballooned_mib": mib(self.device.ballooned()),
            "claimed_mib": mib(self.device.actual()),
            "inflated_pages": counters.inflated,
            "deflated_pages": counters.deflated,
            "reported_pages": counters.reported,
            "released_pages": counters.released,
            "malformed_chains": counters.malformed_chains,
            "broken_rings": counters.broken_rings,
            "statistics": self.statistics(),
        })
    }

    fn statistics(&self) -> Value {
        let Some(latest) = self.device.statistics() else {
            return Value::Null;
        };
        let mut values: Map<String, Value> = latest
            .values
            .iter()
            .map(|(_, name, value)| (name.to_owned(), value.into()))
            .collect();
        let age = latest.age(Instant::now());
        values.insert("age_ms".into(), (age.as_millis() as u64).into());
        values.into()
    }
}

fn timer(interval: Duration) -> io::Result<TimerFd> {
    let mut timer = TimerFd::new()?;
    timer.reset(interval, Some(interval))?;
    Ok(timer)
}

/// What the device says in the words of this transport.
fn fault(error: DeviceError) -> Result<(), Fault> {
    match error {
        DeviceError::Ring { .. } => Err(Fault::Protocol(crate::process::chain(&error))),
        DeviceError::Interrupt(e) => {
            log::error!("cannot interrupt the guest of the balloon: {e}");
            Ok(())
        }
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn features(&self) -> u64 {
        self.device.features()
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.device.read_config(offset as u64, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.device.write_config(offset as u64, data);
    }

    fn activate(&mut self, features: u64, rings: &mut Rings) -> Result<(), Fault> {
        let memory = Arc::new(rings.ram().view().clone());
        let interrupt: Arc<dyn balloon_driver::Interrupt> = Arc::clone(rings.interrupt()) as _;
        self.device
            .activate(features, memory, rings.take_queues(), interrupt)
            .map_err(|e| Fault::Protocol(e.to_string()))
    }

    fn reset(&mut self) {
        self.device.reset();
    }

    fn interests(&self) -> Vec<Interest> {
        let interest = |timer: &TimerFd| Interest {
            fd: timer.as_raw_fd(),
            events: libc::POLLIN,
            token: POLL,
        };
        self.timer.iter().map(interest).collect()
    }

    fn queue_ready(&mut self, index: usize, _rings: &mut Rings) -> Result<Turn, Fault> {
        match self.device.handle_queue_event(index as u16) {
            Ok(Progress::Done) => Ok(Turn::Drained),
            Ok(Progress::More) => Ok(Turn::More),
            Err(error) => fault(error).map(|()| Turn::Drained),
        }
    }

    fn host_ready(&mut self, _token: usize, _rings: &mut Rings) -> Result<(), Fault> {
        if let Some(timer) = &mut self.timer {
            let _ = timer.wait();
        }
        match self.device.request_statistics() {
            Ok(_) => Ok(()),
            Err(error) => fault(error),
        }
    }
}

impl balloon_driver::Interrupt for Interrupt {
    fn used_buffers(&self, _queue: u16) -> io::Result<()> {
        self.queue_used();
        Ok(())
    }

    fn config_changed(&self) -> io::Result<()> {
        Self::config_changed(self);
        Ok(())
    }
}

/// The guest's memory as the balloon gives it back: through [`GuestRam`], which alone knows what its pages are.
struct RamPort(Arc<GuestRam>);

impl Release for RamPort {
    fn backed(&self) -> Vec<Run> {
        let run =
            |r: &crate::memory::RamRegion| Run::new(Frame::new(r.frames.start.number()), r.frames.pages);
        self.0.regions().iter().filter_map(run).collect()
    }

    fn release(&mut self, runs: &[Run], reason: Reason) -> Released {
        let why = match reason {
            Reason::Inflated => page_share::Release::Balloon,
            Reason::Reported => page_share::Release::Report,
        };
        let mut released = Released::default();
        for run in runs {
            let range = frames(*run);
            match self.0.release(range, why) {
                Ok(()) => released.frames += range.pages,
                Err(e) => {
                    released.failed += range.pages;
                    released.error = Some(io::Error::other(e.to_string()));
                }
            }
        }
        released
    }
    fn take_back(&mut self, runs: &[Run]) {
        for run in runs {
            self.0.take_back(frames(*run));
        }
    }
}

fn frames(run: Run) -> GfnRange {
    GfnRange {
        start: Gfn::new(run.first().number()),
        pages: run.count(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::virtio::testing::{BUFFERS, Driver, desc};

    const INFLATE: u16 = 0;

    fn balloon() -> (Driver, Arc<GuestRam>, Arc<Mutex<Balloon>>) {
        let ram = Arc::new(GuestRam::new(crate::virtio::testing::MEMORY).unwrap());
        let config = BalloonConfig {
            bytes: 1 << 20,
            deflate_on_oom: true,
            free_page_reporting: true,
            ..BalloonConfig::default()
        };
        let balloon = Arc::new(Mutex::new(Balloon::new(&config, &ram).unwrap()));
        let driver = Driver::start_with(Arc::clone(&balloon) as _, Arc::clone(&ram));
        (driver, ram, balloon)
    }

    #[test]
    fn inflated_frames_go_back_to_the_host_through_the_guests_memory() {
        let (mut driver, ram, balloon) = balloon();
        assert_eq!(driver.read(0x100), 256, "the target of 1 MiB in frames");
        let frames = [600u32, 601, 602];
        for frame in frames {
            ram.view()
                .write_obj(7u64, GuestAddress(u64::from(frame) * 4096))
                .unwrap();
        }
        driver.put(BUFFERS, &frames.map(u32::to_le_bytes).concat());
        driver.describe(INFLATE, 0, &[desc(BUFFERS, 12, 0, 0)]);
        driver.complete(INFLATE, 0);
        assert_eq!(ram.released_pages(), 3);
        assert_eq!(driver.get(601 * 4096, 1), [0]);
        assert_eq!(balloon.lock().unwrap().figures()["inflated_pages"], 3);
    }

    #[test]
    fn a_new_target_interrupts_the_guest() {
        let (driver, _ram, balloon) = balloon();
        balloon.lock().unwrap().set_target_mib(2).unwrap();
        assert_eq!(driver.read(0x100), 512);
        assert_eq!(driver.read(0x60) & 2, 2);
    }

    #[test]
    fn broken_rings_stop_the_balloon_until_its_reset() {
        let (mut driver, _ram, balloon) = balloon();
        for (times, bad) in (1..).zip([crate::virtio::testing::SIZE + 1, u16::MAX]) {
            driver.bring_up();
            driver.jump(INFLATE, bad);
            driver.kick(INFLATE);
            driver.expect_needs_reset(times);
        }
        driver.bring_up();
        assert!(!driver.needs_reset());
        assert_eq!(balloon.lock().unwrap().figures()["broken_rings"], 2);
    }
}
