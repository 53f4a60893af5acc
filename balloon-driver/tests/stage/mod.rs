//! What the tests share: a device and a driver on one piece of memory.
#![allow(dead_code)]

use std::sync::Arc;

use balloon_driver::driver::{Driver, Guest, Line};
use balloon_driver::release::Anonymous;
use balloon_driver::{Balloon, FRAME_SIZE, Offer, Options};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Guest memory as the tests hold it.
pub(crate) type Memory = Arc<GuestMemoryMmap>;

/// Frames of guest memory. The driver's window is at its start.
pub(crate) const FRAMES: u32 = 4096;

/// Everything on.
pub(crate) fn all_on() -> Options {
    let mut options = Options::default();
    options.free_page_hinting = Offer::On;
    options
}

/// Memory of `FRAMES` frames from address 0 on.
pub(crate) fn memory() -> Memory {
    let size = FRAMES as usize * FRAME_SIZE as usize;
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap())
}

/// Frames that the driver's window does not use.
pub(crate) fn spare_frames(features: u64) -> std::ops::Range<u32> {
    (Driver::<Memory>::window_len(features) / FRAME_SIZE) as u32..FRAMES
}

/// An activated device and its driver.
pub(crate) struct Stage {
    /// The memory of both.
    pub(crate) memory: Memory,
    /// The device half.
    pub(crate) device: Balloon<Memory, Anonymous>,
    /// The driver half.
    pub(crate) driver: Driver<Memory>,
    /// The interrupts between them.
    pub(crate) line: Arc<Line>,
    /// What was negotiated.
    pub(crate) features: u64,
}

impl Stage {
    /// A device that offers `options` and a driver that takes all of it but `refused`.
    pub(crate) fn new(options: Options, refused: u64) -> Self {
        let memory = memory();
        let mut device = Balloon::new(options, Anonymous::new(memory.clone()).unwrap());
        let features = device.features() & !refused;
        let driver = Driver::new(memory.clone(), GuestAddress(0), features).unwrap();
        let line = Arc::new(Line::default());
        let _ = device
            .activate(features, memory.clone(), driver.queues().unwrap(), line.clone())
            .unwrap();
        Self {
            memory,
            device,
            driver,
            line,
            features,
        }
    }

    /// A guest that owns all spare frames, and the device.
    pub(crate) fn into_guest(self) -> (Guest<Memory>, Balloon<Memory, Anonymous>) {
        let frames = spare_frames(self.features).collect();
        (
            Guest::new(self.memory, self.driver, self.line, frames),
            self.device,
        )
    }
}
