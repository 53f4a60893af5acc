//! Why the device could not do something.

use std::io;

use crate::ring::RingError;

/// Why the device stopped or could not do what was asked. All cases are here, because a transport answers each in its
/// own way.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The guest broke a ring. The transport sets `DEVICE_NEEDS_RESET`; until the reset the device does nothing.
    #[error("queue {queue} of the balloon is unusable until the guest resets the device")]
    Ring {
        /// The queue's number.
        queue: u16,
        /// What is wrong with it.
        #[source]
        source: RingError,
    },
    /// The host could not raise an interrupt. The buffers were returned all the same.
    #[error("cannot interrupt the guest of the balloon")]
    Interrupt(#[source] io::Error),
}

/// Why the device could not be activated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivateError {
    /// The driver took features that were not offered, or not `VIRTIO_F_VERSION_1`.
    #[error(
        "the driver accepted features {accepted:#x} of the offered {offered:#x}; it must take bit 32 and only offered ones"
    )]
    Features {
        /// What it took.
        accepted: u64,
        /// What was offered.
        offered: u64,
    },
    /// A queue the driver needs is missing, or lies outside of memory.
    #[error("queue {0} of the balloon is not ready or its rings lie outside of guest memory")]
    Queue(u16),
    /// What was on the queues already could not be served. The device has its driver, and stops as it does after
    /// an event with the same error.
    #[error("cannot serve what the driver queued before it was ready")]
    Serve(#[source] DeviceError),
}
