//! The guest's memory as the balloon gives it back: through [`GuestRam`], which alone knows what its pages are.

use std::io;
use std::sync::Arc;

use balloon_driver::release::{Reason, Release, Released};
use balloon_driver::{Frame, Run};

use crate::memory::{Gfn, GfnRange, GuestRam, RamRegion};

/// The memory of one guest.
pub(super) struct RamPort(pub(super) Arc<GuestRam>);

impl Release for RamPort {
    fn backed(&self) -> Vec<Run> {
        let run = |r: &RamRegion| Run::new(Frame::new(r.frames.start.number()), r.frames.pages);
        self.0.regions().iter().filter_map(run).collect()
    }

    fn release(&mut self, runs: &[Run], reason: Reason) -> Released {
        let why = match reason {
            Reason::Inflated => page_share::Release::Balloon,
            Reason::Reported => page_share::Release::Report,
        };
        let mut released = Released::default();
        for run in runs {
            let range = frames(*run);
            match self.0.release(range, why) {
                Ok(()) => released.frames += range.pages,
                Err(e) => {
                    released.failed += range.pages;
                    released.error = Some(io::Error::other(e.to_string()));
                }
            }
        }
        released
    }

    fn take_back(&mut self, runs: &[Run]) {
        for run in runs {
            self.0.take_back(frames(*run));
        }
    }
}

fn frames(run: Run) -> GfnRange {
    GfnRange {
        start: Gfn::new(run.first().number()),
        pages: run.count(),
    }
}
