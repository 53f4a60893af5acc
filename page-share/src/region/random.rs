//! Random numbers, good enough to choose where to look.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// SplitMix64, from any number of threads at once: no caller waits for another one.
#[derive(Debug)]
pub(crate) struct Random(AtomicU64);

impl Random {
    /// A sequence of its own.
    ///
    /// # Errors
    /// When the kernel refuses random bytes.
    pub(crate) fn new() -> io::Result<Self> {
        let mut seed = [0; 8];
        crate::hash::fill_random(&mut seed)?;
        Ok(Self(AtomicU64::new(u64::from_le_bytes(seed))))
    }

    /// The next number.
    pub(crate) fn draw(&self) -> u64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let at = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        let mixed = (at ^ at >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }
}
