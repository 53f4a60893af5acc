//! A guest in miniature: it owns frames, follows the target as Linux does, and checks what it gets back.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::{Driver, DriverError, FRAMES_PER_BUFFER, Line, Sent};
use crate::config::{ACTUAL_OFFSET, TARGET_OFFSET};
use crate::device::{Balloon, DeviceError, Progress};
use crate::features::QueueKind;
use crate::frame::{FRAME_SIZE, Run, merge_frames};
use crate::release::Release;

/// The device as the guest reaches it: registers and notifications, nothing else.
pub trait Device {
    /// Reads the configuration space.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration space.
    fn write_config(&mut self, offset: u64, data: &[u8]);
    /// Notifies queue number `queue`.
    ///
    /// # Errors
    /// When the device declares itself broken.
    fn notify(&mut self, queue: u16) -> Result<(), DeviceError>;
}

impl<M: GuestAddressSpace, R: Release> Device for Balloon<M, R> {
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        Self::read_config(self, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        Self::write_config(self, offset, data);
    }

    fn notify(&mut self, queue: u16) -> Result<(), DeviceError> {
        while self.handle_queue_event(queue)? == Progress::More {}
        Ok(())
    }
}

/// What went wrong with the guest. Only a device at fault brings one about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// The rings.
    #[error("the guest's driver failed")]
    Driver(#[from] DriverError),
    /// The device.
    #[error("the device failed")]
    Device(#[from] DeviceError),
    /// A frame in use lost its contents: it was released while the guest had it.
    #[error("frame {frame:#x} is in use and holds {found:#x} instead of {expected:#x}")]
    Lost {
        /// The frame.
        frame: u32,
        /// What was written to it.
        expected: u64,
        /// What it holds.
        found: u64,
    },
}

/// A guest with a balloon driver that behaves like Linux: at most 256 frames at a time, one buffer at a time, the
/// next one only when the last came back.
pub struct Guest<M> {
    memory: M,
    driver: Driver<M>,
    line: Arc<Line>,
    free: Vec<u32>,
    used: Vec<(u32, u64)>,
    ballooned: Vec<u32>,
    /// With the device: frames on their way into the balloon, or out of it.
    moving: Option<(QueueKind, Vec<u32>)>,
    /// With the device: frames reported free.
    reported: Vec<u32>,
    /// Notifications not sent yet, as a busy CPU delays them.
    kicks: Vec<u16>,
    stamp: u64,
    wants_work: bool,
}

impl<M: GuestAddressSpace> Guest<M> {
    /// A guest that owns `frames`, all free.
    pub fn new(memory: M, driver: Driver<M>, line: Arc<Line>, frames: Vec<u32>) -> Self {
        Self {
            memory,
            driver,
            line,
            free: frames,
            used: Vec::new(),
            ballooned: Vec::new(),
            moving: None,
            reported: Vec::new(),
            kicks: Vec::new(),
            stamp: 1,
            wants_work: true,
        }
    }

    /// The driver, for those who want more than the guest does.
    pub fn driver(&mut self) -> &mut Driver<M> {
        &mut self.driver
    }

    /// How many frames are in the balloon as the guest sees it.
    pub fn ballooned(&self) -> u64 {
        self.ballooned.len() as u64
    }

    /// The frames in the balloon as the guest sees it.
    pub fn ballooned_frames(&self) -> &[u32] {
        &self.ballooned
    }

    /// How many frames are free.
    pub fn free(&self) -> u64 {
        self.free.len() as u64
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.moving.is_none() && self.reported.is_empty() && self.kicks.is_empty()
    }

    /// Delivers the notifications that were held back.
    ///
    /// # Errors
    /// When the device declares itself broken.
    pub fn kick(&mut self, device: &mut impl Device) -> Result<(), GuestError> {
        for queue in std::mem::take(&mut self.kicks) {
            device.notify(queue)?;
        }
        Ok(())
    }

    /// Takes interrupts, if there are any, and does the next piece of balloon work, if there is any.
    ///
    /// # Errors
    /// When the device does what it must not.
    pub fn step(&mut self, device: &mut impl Device) -> Result<(), GuestError> {
        let queues = self.line.take_queues();
        for kind in [QueueKind::Inflate, QueueKind::Deflate, QueueKind::Reporting] {
            let Some(number) = self.driver.queue_number(kind) else {
                continue;
            };
            if queues & 1 << number != 0 && self.driver.reap(kind)? > 0 {
                self.returned(kind, device);
            }
        }
        self.wants_work |= self.line.take_config();
        if self.wants_work && self.moving.is_none() {
            self.work(device)?;
        }
        Ok(())
    }

    /// Takes up to `count` free frames into use and writes to them.
    ///
    /// # Errors
    /// When the frame does not lie in memory.
    pub fn allocate(&mut self, count: usize) -> Result<(), GuestError> {
        let memory = self.memory.memory();
        for frame in self.free.split_off(self.free.len() - count.min(self.free.len())) {
            self.stamp += 1;
            memory
                .write_obj(self.stamp, address(frame))
                .map_err(DriverError::from)?;
            self.used.push((frame, self.stamp));
        }
        Ok(())
    }

    /// Frees up to `count` frames, the oldest first, and checks that they still hold what was written.
    ///
    /// # Errors
    /// When one does not.
    pub fn release(&mut self, count: usize) -> Result<(), GuestError> {
        self.check()?;
        let freed = self.used.drain(..count.min(self.used.len()));
        self.free.extend(freed.map(|(frame, _)| frame));
        Ok(())
    }

    /// Checks that every frame in use holds what was written to it.
    ///
    /// # Errors
    /// When one does not.
    pub fn check(&self) -> Result<(), GuestError> {
        let memory = self.memory.memory();
        for &(frame, expected) in &self.used {
            let found: u64 = memory.read_obj(address(frame)).map_err(DriverError::from)?;
            if found != expected {
                return Err(GuestError::Lost {
                    frame,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }

    /// Reports up to `count` free frames; they are not used until the buffer comes back.
    ///
    /// # Errors
    /// When the queue cannot take it.
    pub fn report(&mut self, count: usize) -> Result<(), GuestError> {
        if !self.reported.is_empty() || self.free.is_empty() {
            return Ok(());
        }
        let mut frames = self.free.split_off(self.free.len() - count.min(self.free.len()));
        let mut runs = Vec::new();
        merge_frames(&mut frames, &mut runs);
        let (sent, kept) = runs.split_at(runs.len().min(super::RANGES_PER_REPORT));
        self.free.extend(kept.iter().flat_map(|run| numbers(*run)));
        self.reported = sent.iter().flat_map(|run| numbers(*run)).collect();
        let sent = self.driver.send_report(sent)?;
        self.sent(sent);
        Ok(())
    }

    fn returned(&mut self, kind: QueueKind, device: &mut impl Device) {
        match kind {
            QueueKind::Reporting => self.free.append(&mut self.reported),
            _ => match self.moving.take() {
                Some((QueueKind::Inflate, mut frames)) => self.ballooned.append(&mut frames),
                Some((_, mut frames)) => self.free.append(&mut frames),
                None => {}
            },
        }
        device.write_config(ACTUAL_OFFSET, &(self.ballooned.len() as u32).to_le_bytes());
    }

    fn work(&mut self, device: &mut impl Device) -> Result<(), GuestError> {
        let mut target = [0; 4];
        device.read_config(TARGET_OFFSET, &mut target);
        let target = u32::from_le_bytes(target) as usize;
        let have = self.ballooned.len();
        let limit = |want: usize| want.min(FRAMES_PER_BUFFER);
        let (kind, frames) = if target > have {
            let count = limit(target - have).min(self.free.len());
            (QueueKind::Inflate, self.free.split_off(self.free.len() - count))
        } else {
            (
                QueueKind::Deflate,
                self.ballooned.split_off(have - limit(have - target)),
            )
        };
        if frames.is_empty() {
            // Out of puff: Linux tries again later; here the next step does, as long as the target is not reached.
            self.wants_work = target > have;
            return Ok(());
        }
        let sent = self.driver.send_frames(kind, &frames)?;
        self.moving = Some((kind, frames));
        self.sent(sent);
        Ok(())
    }

    fn sent(&mut self, sent: Sent) {
        if sent.notify {
            self.kicks.push(sent.queue);
        }
    }
}

fn address(frame: u32) -> GuestAddress {
    GuestAddress(u64::from(frame) * FRAME_SIZE)
}

fn numbers(run: Run) -> impl Iterator<Item = u32> {
    (run.first().number()..run.end().number()).map(|number| number as u32)
}
