//! The device: what a transport plugs in and what a host steers.

mod error;
mod hinting;
mod options;
mod snapshot;
pub(crate) mod state;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddressSpace;

use crate::config::{Config, GuestFields, config_len};
use crate::counters::Counters;
use crate::features::{self, EVENT_IDX, PAGE_POISON, QueueKind, VERSION_1};
use crate::frame::Run;
use crate::frame_set::FrameSet;
use crate::interrupt::Interrupt;
use crate::queues::{FrameDirection, FrameList, Frames, Hinting, Parking, Reporting};
use crate::release::Release;
use crate::ring::{Ring, RingError, Served};
use crate::rounds::Rounds;
use crate::statistics::Statistics;
use crate::store::Store;

pub use error::{ActivateError, DeviceError};
pub use options::{Offer, Options};

/// Entries of each queue. Linux needs 32 for reporting and sends one buffer at a time on the others.
pub const QUEUE_SIZE: u16 = 128;

/// Whether an event left work behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "work that is left gets no further notification"]
pub enum Progress {
    /// The queue is empty; the driver will notify again.
    Done,
    /// The driver added buffers faster than one event serves: call again soon, no notification will come.
    More,
}

/// What became of a request for statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatisticsRequest {
    /// The guest was asked.
    Sent,
    /// It has not answered the last request yet, or sent no first buffer.
    Pending,
    /// There is no driver, or it has no statistics queue.
    Unavailable,
}

/// A virtio-balloon device.
///
/// `M` is how guest memory is reached, `R` how frames are given back. No method blocks or waits for the guest.
pub struct Balloon<M, R> {
    pub(crate) options: Options,
    pub(crate) config: Config,
    pub(crate) store: Store<R>,
    pub(crate) active: Option<Active<M>>,
    pub(crate) statistics: Option<Statistics>,
    pub(crate) rounds: Rounds,
    /// When the guest last touched the device.
    pub(crate) heard: Option<Instant>,
    pub(crate) counters: Counters,
    /// Room for the work on a batch; empty between two events.
    pub(crate) list: FrameList,
    /// The same for reports.
    pub(crate) reported: Vec<Run>,
}

/// What exists only between a driver's `DRIVER_OK` and its reset.
pub(crate) struct Active<M> {
    pub(crate) features: u64,
    pub(crate) memory: M,
    pub(crate) interrupt: Arc<dyn Interrupt>,
    pub(crate) rings: Vec<Option<(QueueKind, Ring)>>,
    pub(crate) broken: bool,
}

impl<M: GuestAddressSpace, R: Release> Balloon<M, R> {
    /// A device without a driver, for the memory that `port` gives back.
    pub fn new(options: Options, port: R) -> Self {
        Self {
            options,
            config: Config::default(),
            store: Store::new(port),
            active: None,
            statistics: None,
            rounds: Rounds::default(),
            heard: None,
            counters: Counters::default(),
            list: FrameList::default(),
            reported: Vec::new(),
        }
    }

    /// The feature bits to offer the driver.
    pub fn features(&self) -> u64 {
        self.options.features()
    }

    /// The largest size of each queue the device offers; their number is the number of queues. When the driver takes
    /// fewer features, the last ones stay unused (see [`features::queues`]).
    pub fn queue_sizes(&self) -> Vec<u16> {
        features::queues(self.features()).map(|_| QUEUE_SIZE).collect()
    }

    /// Starts work with a driver that accepted `features` and set up `queues`, in the order of their numbers, and
    /// serves what is on the queues already: Linux sends its first statistics before it sets `DRIVER_OK`, when
    /// [`handle_queue_event`](Self::handle_queue_event) ignores the notification, and sends no second one.
    ///
    /// After [`Progress::More`] handle an event of every queue.
    ///
    /// # Errors
    /// When the driver accepted what was not offered, when inflate, deflate or a queue it made ready cannot be used,
    /// and as [`handle_queue_event`](Self::handle_queue_event).
    pub fn activate(
        &mut self,
        features: u64,
        memory: M,
        queues: Vec<Queue>,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Progress, ActivateError> {
        self.set_up(features, memory, queues, interrupt)?;
        self.serve_waiting()
    }

    /// Takes over the driver's queues without a look at what is on them.
    fn set_up(
        &mut self,
        features: u64,
        memory: M,
        queues: Vec<Queue>,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<(), ActivateError> {
        let offered = self.features();
        if features & !offered != 0 || features & VERSION_1 == 0 {
            return Err(ActivateError::Features {
                accepted: features,
                offered,
            });
        }
        let mut queues = queues.into_iter();
        let mut rings = Vec::new();
        for (number, kind) in (0u16..).zip(features::queues(features)) {
            let ring = match queues.next() {
                Some(mut queue) if queue.ready() => {
                    queue.set_event_idx(features & EVENT_IDX != 0);
                    Some(queue)
                        .filter(|queue| queue.is_valid(&*memory.memory()))
                        .ok_or(ActivateError::Queue(number))?
                }
                _ if matches!(kind, QueueKind::Inflate | QueueKind::Deflate) => {
                    return Err(ActivateError::Queue(number));
                }
                _ => {
                    rings.push(None);
                    continue;
                }
            };
            rings.push(Some((kind, Ring::new(ring))));
        }
        self.active = Some(Active {
            features,
            memory,
            interrupt,
            rings,
            broken: false,
        });
        Ok(())
    }

    /// One event for every queue that the driver made ready.
    fn serve_waiting(&mut self) -> Result<Progress, ActivateError> {
        let ready = self.active.iter().flat_map(|active| (0u16..).zip(&active.rings));
        let ready: Vec<u16> = ready
            .filter_map(|(queue, ring)| ring.as_ref().map(|_| queue))
            .collect();
        let mut progress = Progress::Done;
        for queue in ready {
            if self.handle_queue_event(queue).map_err(ActivateError::Serve)? == Progress::More {
                progress = Progress::More;
            }
        }
        Ok(progress)
    }

    /// The driver reset the device, or the guest rebooted: the balloon pops. The target stays, and so does the
    /// count of rounds of hinting, which gives every round another number.
    pub fn reset(&mut self) {
        self.counters.resets += 1;
        self.counters.popped += self.store.pop();
        self.active = None;
        self.statistics = None;
        self.heard = None;
        self.config.guest = GuestFields::default();
        self.rounds.reset();
        self.config.host.hint_command = self.rounds.command();
    }

    /// Serves the queue that the driver notified.
    ///
    /// # Errors
    /// When the guest broke the ring: the transport tells it that the device needs a reset. When the host cannot
    /// raise an interrupt.
    pub fn handle_queue_event(&mut self, queue: u16) -> Result<Progress, DeviceError> {
        let Some(active) = self.active.as_mut().filter(|active| !active.broken) else {
            self.counters.ignored_events += 1;
            return Ok(Progress::Done);
        };
        self.heard = Some(Instant::now());
        let guard = active.memory.memory();
        let memory = &*guard;
        let Some(Some((kind, ring))) = active.rings.get_mut(usize::from(queue)) else {
            self.counters.ignored_events += 1;
            return Ok(Progress::Done);
        };
        let counters = &mut self.counters;
        let (list, store) = (&mut self.list, &mut self.store);
        let served = match kind {
            QueueKind::Inflate | QueueKind::Deflate => {
                let direction = match kind {
                    QueueKind::Inflate => FrameDirection::Inflate,
                    _ => FrameDirection::Deflate,
                };
                ring.serve(
                    memory,
                    &mut Frames {
                        direction,
                        list,
                        store,
                        counters,
                    },
                )
            }
            QueueKind::Statistics => ring.serve(
                memory,
                &mut Parking {
                    latest: &mut self.statistics,
                    counters,
                },
            ),
            QueueKind::Hinting => ring.serve(
                memory,
                &mut Hinting {
                    rounds: &mut self.rounds,
                    counters,
                },
            ),
            QueueKind::Reporting => {
                let poison = if active.features & PAGE_POISON == 0 {
                    0
                } else {
                    self.config.guest.poison
                };
                ring.serve(
                    memory,
                    &mut Reporting {
                        runs: &mut self.reported,
                        store,
                        counters,
                        poison,
                    },
                )
            }
        };
        active.conclude(queue, served, &mut self.counters)
    }

    /// Reads the configuration space; what lies past its end reads as zero.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    /// Takes what the driver wrote to the fields that are its own; the rest is ignored and counted.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        // Linux writes its poison value before it sets DRIVER_OK, so before the device hears what was negotiated.
        let features = self
            .active
            .as_ref()
            .map_or_else(|| self.features(), |active| active.features);
        self.heard = Some(Instant::now());
        self.counters.refused_config_bytes += self.config.write(offset, data, features);
    }

    /// How many bytes of configuration the offered features define.
    pub fn config_len(&self) -> usize {
        config_len(self.features())
    }

    /// Asks the guest to put `frames` frames into the balloon, at most all of its memory.
    ///
    /// # Errors
    /// When the interrupt cannot be raised; the target is set all the same.
    pub fn set_target(&mut self, frames: u64) -> Result<(), DeviceError> {
        let target = u32::try_from(frames.min(self.store.ballooned.capacity())).unwrap_or(u32::MAX);
        if self.config.host.target == target {
            return Ok(());
        }
        self.config.host.target = target;
        self.config_changed()
    }

    /// How many frames the host wants in the balloon.
    pub fn target(&self) -> u64 {
        u64::from(self.config.host.target)
    }

    /// How many frames the guest says are in the balloon. It lags, and it may lie: nothing should be decided by it.
    pub fn actual(&self) -> u64 {
        u64::from(self.config.guest.actual)
    }

    /// How many frames are in the balloon: inflated, released, and not deflated since.
    pub fn ballooned(&self) -> u64 {
        self.store.ballooned.len()
    }

    /// Which frames are in the balloon.
    pub fn ballooned_frames(&self) -> &FrameSet {
        &self.store.ballooned
    }

    /// Asks the guest for fresh statistics.
    ///
    /// # Errors
    /// As [`handle_queue_event`](Self::handle_queue_event).
    pub fn request_statistics(&mut self) -> Result<StatisticsRequest, DeviceError> {
        let Some(active) = self.active.as_mut().filter(|active| !active.broken) else {
            return Ok(StatisticsRequest::Unavailable);
        };
        let guard = active.memory.memory();
        let mut rings = (0u16..).zip(&mut active.rings);
        let found = rings.find_map(|(queue, ring)| match ring {
            Some((QueueKind::Statistics, ring)) => Some((queue, ring)),
            _ => None,
        });
        let Some((queue, ring)) = found else {
            return Ok(StatisticsRequest::Unavailable);
        };
        let served = match ring.unpark(&*guard) {
            Ok(None) => return Ok(StatisticsRequest::Pending),
            Ok(Some(served)) => Ok(served),
            Err(error) => Err(error),
        };
        active
            .conclude(queue, served, &mut self.counters)
            .map(|_| StatisticsRequest::Sent)
    }

    /// The last statistics the guest sent; they carry their age.
    pub fn statistics(&self) -> Option<&Statistics> {
        self.statistics.as_ref()
    }

    /// When the guest last gave a sign of life; `None` since the last reset.
    pub fn last_heard(&self) -> Option<Instant> {
        self.heard
    }

    /// Whether a driver is working with the device.
    pub fn is_active(&self) -> bool {
        self.active.as_ref().is_some_and(|active| !active.broken)
    }

    /// Whether a driver is working with the device and accepted every bit of `features`.
    pub fn negotiated(&self, features: u64) -> bool {
        self.is_active()
            && self
                .active
                .as_ref()
                .is_some_and(|active| active.features & features == features)
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Why the last failed release failed, until it is asked for.
    pub fn take_release_error(&mut self) -> Option<io::Error> {
        self.store.error.take()
    }

    fn config_changed(&self) -> Result<(), DeviceError> {
        match self.active.as_ref().filter(|active| !active.broken) {
            Some(active) => active.interrupt.config_changed().map_err(DeviceError::Interrupt),
            None => Ok(()),
        }
    }
}

impl<M> Active<M> {
    /// Tells the driver what was returned, or stops working with it.
    fn conclude(
        &mut self,
        queue: u16,
        served: Result<Served, RingError>,
        counters: &mut Counters,
    ) -> Result<Progress, DeviceError> {
        let served = served.map_err(|source| {
            counters.broken_rings += 1;
            self.broken = true;
            DeviceError::Ring { queue, source }
        })?;
        if served.interrupt {
            self.interrupt
                .used_buffers(queue)
                .map_err(DeviceError::Interrupt)?;
        }
        Ok(if served.more {
            Progress::More
        } else {
            Progress::Done
        })
    }
}

impl<M, R> fmt::Debug for Balloon<M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let driver = self.active.as_ref();
        f.debug_struct("Balloon")
            .field("options", &self.options)
            .field(
                "accepted",
                &driver.map(|active| format!("{:#x}", active.features)),
            )
            .field("broken", &driver.is_some_and(|active| active.broken))
            .field("config", &self.config)
            .field("ballooned", &self.store.ballooned.len())
            .field("statistics", &self.statistics)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}
