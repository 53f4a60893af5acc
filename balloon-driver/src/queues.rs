//! What the device does with a buffer of each queue. Sibling files, one per kind of queue.

mod frames;
mod hinting;
mod reporting;
mod statistics;

pub(crate) use frames::{FrameDirection, Frames};
pub(crate) use hinting::Hinting;
pub(crate) use reporting::Reporting;
pub(crate) use statistics::Parking;

use vm_memory::GuestMemory;

use crate::chain::{Chain, Extent, Malformed};
use crate::counters::Counters;
use crate::frame::{Run, merge_frames};
use crate::frame_set::FrameSet;

/// How many frame numbers the device reads from one buffer. Linux sends 256.
const FRAMES_PER_BUFFER: usize = 1 << 14;

/// After this many frame numbers a batch is worked off, so that its memory stays bounded.
const FRAMES_PER_BATCH: usize = 1 << 16;

/// Frame numbers read from a batch of buffers, and room to work on them; kept between events.
#[derive(Debug, Default)]
pub(crate) struct FrameList {
    bytes: Vec<u8>,
    frames: Vec<u32>,
    named: Vec<Run>,
    /// The runs that are this guest's memory, after `merge`.
    runs: Vec<Run>,
}

impl FrameList {
    /// Adds the frame numbers in `chain`.
    fn read<M: GuestMemory>(&mut self, chain: Chain<'_, M>, counters: &mut Counters) {
        let extent = chain.read(&mut self.bytes, FRAMES_PER_BUFFER * 4);
        let numbers = self.bytes.chunks_exact(4);
        if extent == Err(Malformed) || !numbers.remainder().is_empty() {
            counters.malformed_chains += 1;
            return;
        }
        counters.oversized_buffers += u64::from(extent == Ok(Extent::Cut));
        self.frames
            .extend(numbers.map(|number| u32::from_le_bytes([number[0], number[1], number[2], number[3]])));
    }

    fn is_full(&self) -> bool {
        self.frames.len() >= FRAMES_PER_BATCH
    }

    /// Turns the frames into runs of the guest's memory and forgets them.
    fn merge(&mut self, memory: &FrameSet, counters: &mut Counters) -> &[Run] {
        self.named.clear();
        self.runs.clear();
        counters.repeated += merge_frames(&mut self.frames, &mut self.named);
        self.frames.clear();
        for &run in &self.named {
            let before = self.runs.len();
            self.runs.extend(memory.clip(run));
            let kept: u64 = self.runs[before..].iter().map(|run| run.count()).sum();
            counters.foreign += run.count() - kept;
        }
        &self.runs
    }
}
