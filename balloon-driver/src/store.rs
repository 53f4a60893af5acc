//! The guest's memory as the balloon sees it: which frames it holds, and the port that frees them.

use std::io;

use crate::counters::Counters;
use crate::frame::{Frame, Run, merge_runs};
use crate::frame_set::FrameSet;
use crate::release::{Reason, Release};

/// The balloon's frames and the memory behind them.
pub(crate) struct Store<R> {
    pub(crate) ballooned: FrameSet,
    port: R,
    unit: u64,
    whole: Vec<Run>,
    /// Why the last release failed.
    pub(crate) error: Option<io::Error>,
}

impl<R: Release> Store<R> {
    pub(crate) fn new(port: R) -> Self {
        let (ballooned, unit) = (FrameSet::new(&port.backed()), port.unit().max(1));
        Self {
            ballooned,
            port,
            unit,
            whole: Vec::new(),
            error: None,
        }
    }

    pub(crate) fn port(&self) -> &R {
        &self.port
    }

    /// Gives `runs`, which are sorted, disjoint and this guest's memory, back to the host, as far as they fill whole
    /// units.
    pub(crate) fn release(&mut self, runs: &[Run], reason: Reason, counters: &mut Counters) {
        if self.unit == 1 {
            return self.release_whole(runs, reason, counters);
        }
        let mut whole = std::mem::take(&mut self.whole);
        whole.clear();
        for &run in runs {
            match reason {
                Reason::Reported => whole.extend(run.aligned_inward(self.unit)),
                Reason::Inflated => whole.extend(self.full_units(run)),
            }
        }
        merge_runs(&mut whole);
        let frames = |runs: &[Run]| runs.iter().map(|run| run.count()).sum::<u64>();
        counters.kept_for_unit += frames(runs).saturating_sub(frames(&whole));
        self.release_whole(&whole, reason, counters);
        self.whole = whole;
    }

    pub(crate) fn take_back(&mut self, runs: &[Run]) {
        if !runs.is_empty() {
            self.port.take_back(runs);
        }
    }

    /// Empties the balloon: its driver is gone. Returns how many frames were in it.
    pub(crate) fn pop(&mut self) -> u64 {
        let runs = self.ballooned.runs();
        self.ballooned.clear();
        self.take_back(&runs);
        runs.iter().map(|run| run.count()).sum()
    }

    fn release_whole(&mut self, runs: &[Run], reason: Reason, counters: &mut Counters) {
        if runs.is_empty() {
            return;
        }
        let released = self.port.release(runs, reason);
        counters.released_runs += runs.len() as u64;
        counters.released += released.frames;
        counters.release_failed += released.failed;
        self.error = released.error.or(self.error.take());
    }

    /// The units around `run` that are in the balloon as a whole.
    fn full_units(&self, run: Run) -> impl Iterator<Item = Run> {
        let units = run.first().number() / self.unit..run.end().number().div_ceil(self.unit);
        units
            .filter_map(|at| Run::new(Frame::new(at * self.unit), self.unit))
            .filter(|unit| self.ballooned.count(*unit) == self.unit)
    }
}
