//! The guest's balloon: the device of `balloon-driver`, and its driver half where a guest has a kernel.

use std::sync::Arc;

use anyhow::Result;
use balloon_driver::driver::{Driver, Guest, Line};
use balloon_driver::release::{Reason, Release, Released};
use balloon_driver::{Balloon, Frame, Options, Run};
use page_share::{Gfn, PageRun, Region};
use vm_memory::GuestAddress;

use crate::memory::{FREE, View};

/// Frames leave the device through the region, which knows where each of them is.
struct Port(Arc<Region>);

impl Release for Port {
    fn backed(&self) -> Vec<Run> {
        Vec::from_iter(Run::new(Frame::new(0), u64::from(FREE.end)))
    }

    fn release(&mut self, runs: &[Run], reason: Reason) -> Released {
        let why = match reason {
            Reason::Inflated => page_share::Release::Balloon,
            Reason::Reported => page_share::Release::Report,
        };
        let mut released = Released::default();
        for run in runs {
            self.0.release(pages(run), why);
            released.frames += run.count();
        }
        released
    }

    fn take_back(&mut self, runs: &[Run]) {
        runs.iter().for_each(|run| self.0.deflate(pages(run)));
    }
}

fn pages(run: &Run) -> PageRun {
    PageRun::new(Gfn::new(run.first().number() as u32), run.count() as u32)
}

/// The balloon's two ends.
pub(crate) struct Ends {
    device: Balloon<View, Port>,
    driver: Guest<View>,
}

impl Ends {
    /// Plugs a balloon into a guest that has used its free frames before.
    pub(crate) fn plug(view: &View, region: Arc<Region>) -> Result<Self> {
        let mut device = Balloon::new(Options::default(), Port(region));
        let (features, line) = (device.features(), Arc::new(Line::default()));
        let driver = Driver::new(view.clone(), GuestAddress(0), features)?;
        // Nothing is on the queues yet.
        let _ = device.activate(features, view.clone(), driver.queues()?, line.clone())?;
        let mut driver = Guest::new(view.clone(), driver, line, FREE.collect());
        driver.allocate(FREE.len())?;
        driver.release(FREE.len())?;
        Ok(Self { device, driver })
    }

    /// The next piece of work towards a balloon of `target` pages; returns how many are in it.
    pub(crate) fn work(&mut self, target: u64) -> Result<u64> {
        self.device.set_target(target)?;
        self.driver.step(&mut self.device)?;
        self.driver.kick(&mut self.device)?;
        Ok(self.device.ballooned())
    }
}
