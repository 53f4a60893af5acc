//! Deflate: frames the guest takes back.

use vm_memory::GuestMemory;

use super::FrameList;
use crate::chain::Chain;
use crate::counters::Counters;
use crate::release::Release;
use crate::ring::{Verdict, Work};
use crate::store::Store;

pub(crate) struct Deflate<'d, R> {
    pub(crate) list: &'d mut FrameList,
    pub(crate) store: &'d mut Store<R>,
    pub(crate) counters: &'d mut Counters,
}

impl<M: GuestMemory, R: Release> Work<M> for Deflate<'_, R> {
    fn chain(&mut self, chain: Chain<'_, M>) -> Verdict {
        self.counters.deflate_buffers += 1;
        self.list.read(chain, self.counters);
        Verdict::Return
    }

    fn is_full(&self) -> bool {
        self.list.is_full()
    }

    fn finish(&mut self) {
        let runs = self.list.merge(&self.store.ballooned, self.counters);
        for &run in runs {
            let removed = self.store.ballooned.remove(run);
            self.counters.deflated += removed;
            self.counters.never_inflated += run.count() - removed;
        }
        self.store.take_back(runs);
    }
}
