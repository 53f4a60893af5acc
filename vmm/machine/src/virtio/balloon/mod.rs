//! virtio-balloon: the device of the `balloon-driver` crate, plugged into this VMM and steered by its controller.

mod handle;
mod picture;
mod pilot;
mod port;
mod settings;
mod timer;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use balloon_driver::controller::Status;
use balloon_driver::{Balloon as Crate, DeviceError, FRAME_SIZE, Offer, Options, Progress};
use vm_memory::GuestMemoryMmap;

use super::{DeviceKind, Fault, Figures, Interest, Interrupt, Rings, Turn, VirtioDevice};
use crate::memory::GuestRam;
use pilot::Pilot;
use port::RamPort;
use timer::Timer;

pub use handle::BalloonHandle;
pub use picture::Picture;
pub use settings::BalloonConfig;

/// The crate's device for this VMM's memory.
type Device = Crate<Arc<GuestMemoryMmap>, RamPort>;

/// Frames in a MiB.
const FRAMES_PER_MIB: u64 = (1 << 20) / FRAME_SIZE;

/// What the device's thread waits for: statistics are due, or a step of the controller.
const POLL: usize = 0;
const STEP: usize = 1;

/// The balloon of one guest.
pub struct Balloon {
    device: Device,
    pilot: Pilot,
    queue_sizes: Vec<u16>,
    config: BalloonConfig,
    memory_mib: u64,
    poll: Timer,
    shown: Figures<Picture>,
}

/// A change of a balloon; the names are those of Firecracker's API. What is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The size in MiB.
    pub amount_mib: Option<u64>,
    /// Whether the guest may take memory back rather than kill a process. The guest's driver settles this when it
    /// starts, so it can only be confirmed.
    pub deflate_on_oom: Option<bool>,
    /// Seconds between two requests for statistics, 1 or more; a balloon that was started without has none.
    pub stats_polling_interval_s: Option<u64>,
}

/// Why a balloon is not changed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum ChangeError {
    /// More than there is.
    #[error("amount_mib={asked}: this guest has {have} MiB")]
    Amount { asked: u64, have: u64 },
    /// Its guest keeps it at work.
    #[error("the balloon is at work for its guest at the moment; ask again")]
    Busy,
    /// The driver settled it.
    #[error(
        "deflate_on_oom={0}: the guest was started the other way; restart it with --balloon deflate_on_oom="
    )]
    DeflateOnOom(bool),
    /// The driver settled whether there are statistics.
    #[error(
        "stats_polling_interval_s={0}: statistics are switched on (1 to 3600) or off (0) when a guest starts, with \
         --balloon stats_polling_interval="
    )]
    Polling(u64),
}

impl Balloon {
    /// A balloon for the guest whose memory is `ram`.
    ///
    /// # Errors
    /// When the host has no timers for it.
    pub fn new(config: &BalloonConfig, ram: &Arc<GuestRam>) -> io::Result<Self> {
        let offer = |wanted| if wanted { Offer::On } else { Offer::Off };
        let mut options = Options::default();
        options.deflate_on_oom = offer(config.deflate_on_oom);
        options.free_page_reporting = offer(config.free_page_reporting);
        options.statistics = offer(!config.stats_polling_interval.is_zero());
        options.page_poison = offer(config.free_page_reporting);
        let device = Crate::new(options, RamPort(Arc::clone(ram)));
        let mut pilot = Pilot::new(ram.bytes(), config.stats_polling_interval)?;
        pilot.wish(config.bytes / FRAME_SIZE);
        let poll = Timer::new()?;
        // An interval of zero leaves it off.
        poll.every(config.stats_polling_interval);
        let shown = Figures::new(Picture::of_new(*config));
        let balloon = Self {
            queue_sizes: device.queue_sizes(),
            device,
            pilot,
            config: *config,
            memory_mib: ram.bytes() >> 20,
            poll,
            shown,
        };
        balloon.show();
        Ok(balloon)
    }

    /// Changes what its owner can change while the guest runs. All of it, or nothing.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn change(&mut self, change: Change) -> Result<(), ChangeError> {
        if let Some(asked) = change.amount_mib.filter(|asked| *asked > self.memory_mib) {
            let have = self.memory_mib;
            return Err(ChangeError::Amount { asked, have });
        }
        if let Some(wanted) = change
            .deflate_on_oom
            .filter(|wanted| *wanted != self.config.deflate_on_oom)
        {
            return Err(ChangeError::DeflateOnOom(wanted));
        }
        if let Some(seconds) = change.stats_polling_interval_s {
            let polls = !self.config.stats_polling_interval.is_zero();
            if polls != (seconds > 0) || seconds > 3600 {
                return Err(ChangeError::Polling(seconds));
            }
            self.set_polling(Duration::from_secs(seconds));
        }
        if let Some(mib) = change.amount_mib {
            self.pilot.wish(mib * FRAMES_PER_MIB);
        }
        self.show();
        Ok(())
    }

    fn set_polling(&mut self, interval: Duration) {
        self.config.stats_polling_interval = interval;
        self.poll.every(interval);
        self.pilot.set_polling(interval);
    }

    /// What there is to know of it now.
    pub fn picture(&self) -> Picture {
        Picture {
            config: self.config,
            owner: self.pilot.owner(),
            goal: self.pilot.goal(),
            // A device whose rings broke has no driver, although the controller has not taken a step since.
            status: match self.device.is_active() {
                true => self.pilot.status(),
                false => Status::Absent,
            },
            target: self.device.target(),
            ballooned: self.device.ballooned(),
            claimed: self.device.actual(),
            counters: self.device.counters(),
            statistics: self.device.statistics().copied(),
        }
    }

    /// Lets others see it as it is now.
    fn show(&self) {
        let picture = self.picture();
        self.shown.change(|shown| *shown = picture);
    }

    /// Lets the controller decide and gives the device its target.
    fn steer(&mut self) -> Result<(), Fault> {
        let target = self.pilot.step(&self.device);
        self.device.set_target(target).or_else(fault)
    }
}

/// What the device says in the words of this transport.
fn fault(error: DeviceError) -> Result<(), Fault> {
    match error {
        DeviceError::Ring { .. } => Err(Fault::Protocol(levy_protocol::error_chain(&error))),
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
        self.show();
    }

    fn activate(&mut self, features: u64, rings: &mut Rings) -> Result<(), Fault> {
        let memory = Arc::new(rings.ram().view().clone());
        let interrupt: Arc<dyn balloon_driver::Interrupt> = Arc::clone(rings.interrupt()) as _;
        // This thread looks at every queue once more before it waits, so that more to do is not news.
        let _ = self
            .device
            .activate(features, memory, rings.take_queues(), interrupt)
            .map_err(|e| Fault::Protocol(levy_protocol::error_chain(&e)))?;
        self.pilot.begin();
        self.show();
        Ok(())
    }

    fn reset(&mut self) {
        self.device.reset();
        // Without a driver a step can only take the target back, which cannot fail.
        let _ = self.steer();
        self.show();
    }

    fn interests(&self) -> Vec<Interest> {
        let interest = |fd: RawFd, token| Interest {
            fd,
            events: libc::POLLIN,
            token,
        };
        vec![
            interest(self.poll.as_raw_fd(), POLL),
            interest(self.pilot.due(), STEP),
        ]
    }

    fn queue_ready(&mut self, index: usize, _rings: &mut Rings) -> Result<Turn, Fault> {
        let received = |device: &Device| device.statistics().map(|latest| latest.received);
        let before = received(&self.device);
        let turn = match self.device.handle_queue_event(index as u16) {
            Ok(Progress::Done) => Ok(Turn::Drained),
            Ok(Progress::More) => Ok(Turn::More),
            Err(error) => fault(error).map(|()| Turn::Drained),
        };
        if received(&self.device) != before {
            self.pilot.hurry();
        }
        self.show();
        turn
    }

    fn host_ready(&mut self, token: usize, _rings: &mut Rings) -> Result<(), Fault> {
        let done = match token {
            STEP => self.steer(),
            _ => {
                self.poll.clear();
                self.device.request_statistics().map(drop).or_else(fault)
            }
        };
        self.show();
        done
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

#[cfg(test)]
mod tests;
