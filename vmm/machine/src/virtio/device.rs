//! What a virtio device is, whatever transport it is plugged into.

use crate::confine::Role;
use std::os::fd::RawFd;

use super::ring::{Fault, Rings, Turn};

/// The kinds of devices there are here (virtio 1.2, 5 "Device Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Network card.
    Net,
    /// Block device.
    Block,
    /// Console.
    Console,
    /// Entropy source.
    Rng,
    /// Memory balloon.
    Balloon,
}

impl DeviceKind {
    /// The device id.
    pub const fn id(self) -> u32 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Console => 3,
            Self::Rng => 4,
            Self::Balloon => 5,
        }
    }

    /// What its thread may do.
    pub const fn role(self) -> Role {
        match self {
            Self::Net => Role::Net,
            Self::Block => Role::Disk,
            Self::Console => Role::Console,
            Self::Rng => Role::Entropy,
            Self::Balloon => Role::Balloon,
        }
    }
}

/// A host file descriptor that a device waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// The descriptor; the device keeps it open for as long as it names it.
    pub fd: RawFd,
    /// `POLLIN`, `POLLOUT` or both.
    pub events: i16,
    /// What the device calls it.
    pub token: usize,
}

/// A device: features, configuration space, and what to do when a queue or a host descriptor wants it.
///
/// The methods run on the device's own thread, except those about configuration, which run on the vCPU that asks.
/// Both are confined to the system calls of their roles ([`crate::confine`]).
/// All run under one lock. Features about rings (`VIRTIO_F_VERSION_1`, indirect descriptors, event index) are the
/// transport's and not named here.
pub trait VirtioDevice: Send {
    /// What the device is.
    fn kind(&self) -> DeviceKind;

    /// The device's own feature bits.
    fn features(&self) -> u64 {
        0
    }

    /// The most entries each of its queues can have; powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Fills `data` from the configuration space at `offset`; bytes beyond the end are zero.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// The driver writes `data` to the configuration space at `offset`.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// The driver is ready and accepted `features`. A device that works its queues itself takes them out of `rings`.
    ///
    /// # Errors
    /// When the driver set the device up in a way it cannot work with.
    fn activate(&mut self, _features: u64, _rings: &mut Rings) -> Result<(), Fault> {
        Ok(())
    }

    /// The driver took the device down: forget everything about it.
    fn reset(&mut self) {}

    /// The descriptors to wait for at the moment.
    fn interests(&self) -> Vec<Interest> {
        Vec::new()
    }

    /// The driver kicked queue `index`.
    ///
    /// # Errors
    /// When the driver broke the rules; the device then waits for a reset.
    fn queue_ready(&mut self, index: usize, rings: &mut Rings) -> Result<Turn, Fault>;

    /// The descriptor called `token` is ready.
    ///
    /// # Errors
    /// As for [`queue_ready`](Self::queue_ready).
    fn host_ready(&mut self, _token: usize, _rings: &mut Rings) -> Result<(), Fault> {
        Ok(())
    }
}

/// Copies the part of `config` at `offset` into `data` and zeros behind its end.
pub(super) fn read_config_bytes(config: &[u8], offset: usize, data: &mut [u8]) {
    data.fill(0);
    let Some(rest) = config.get(offset..) else { return };
    let len = rest.len().min(data.len());
    data[..len].copy_from_slice(&rest[..len]);
}
