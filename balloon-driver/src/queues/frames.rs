//! Inflate and deflate: frames the guest gives away, and frames it takes back.

use vm_memory::GuestMemory;

use super::FrameList;
use crate::chain::Chain;
use crate::counters::Counters;
use crate::release::{Reason, Release};
use crate::ring::{Verdict, Work};
use crate::store::Store;

/// Which way frames go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameDirection {
    Inflate,
    Deflate,
}

pub(crate) struct Frames<'d, R> {
    pub(crate) direction: FrameDirection,
    pub(crate) list: &'d mut FrameList,
    pub(crate) store: &'d mut Store<R>,
    pub(crate) counters: &'d mut Counters,
}

impl<M: GuestMemory, R: Release> Work<M> for Frames<'_, R> {
    fn chain(&mut self, chain: Chain<'_, M>) -> Verdict {
        match self.direction {
            FrameDirection::Inflate => self.counters.inflate_buffers += 1,
            FrameDirection::Deflate => self.counters.deflate_buffers += 1,
        }
        self.list.read(chain, self.counters);
        Verdict::Return
    }

    fn is_full(&self) -> bool {
        self.list.is_full()
    }

    fn finish(&mut self) {
        let runs = self.list.merge(&self.store.ballooned, self.counters);
        if self.direction == FrameDirection::Inflate {
            for &run in runs {
                let added = self.store.ballooned.insert(run);
                self.counters.inflated += added;
                // Released once more: a guest may reuse a frame before it says so, and inflate it again.
                self.counters.already_inflated += run.count() - added;
            }
            self.store.release(runs, Reason::Inflated, self.counters);
        } else {
            for &run in runs {
                let removed = self.store.ballooned.remove(run);
                self.counters.deflated += removed;
                self.counters.never_inflated += run.count() - removed;
            }
            self.store.take_back(runs);
        }
    }
}
