//! The interrupt line between the two halves.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::interrupt::Interrupt;

/// Interrupts that were raised and not taken yet, as the status register of a transport holds them.
#[derive(Debug, Default)]
pub struct Line {
    queues: AtomicU64,
    config: AtomicBool,
    raised: AtomicU64,
}

impl Line {
    /// Takes the queues with returned buffers, as bits by their numbers.
    pub fn take_queues(&self) -> u64 {
        self.queues.swap(0, Ordering::AcqRel)
    }

    /// Takes the notice that the configuration changed.
    pub fn take_config(&self) -> bool {
        self.config.swap(false, Ordering::AcqRel)
    }

    /// How many interrupts were raised in all.
    pub fn raised(&self) -> u64 {
        self.raised.load(Ordering::Relaxed)
    }
}

impl Interrupt for Line {
    fn used_buffers(&self, queue: u16) -> io::Result<()> {
        self.queues.fetch_or(1 << queue, Ordering::AcqRel);
        self.raised.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn config_changed(&self) -> io::Result<()> {
        self.config.store(true, Ordering::Release);
        self.raised.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
