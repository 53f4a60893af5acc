//! Free page reporting: ranges that are free now, whose contents the guest does not need.

use vm_memory::{Address, GuestMemory};

use crate::chain::{Chain, Direction, Malformed};
use crate::counters::Counters;
use crate::frame::{Run, merge_runs};
use crate::release::{Reason, Release};
use crate::ring::{Verdict, Work};
use crate::store::Store;

/// After this many ranges a batch is worked off.
const RANGES_PER_BATCH: usize = 1 << 12;

pub(crate) struct Reporting<'d, R> {
    pub(crate) runs: &'d mut Vec<Run>,
    pub(crate) store: &'d mut Store<R>,
    pub(crate) counters: &'d mut Counters,
    /// The guest expects this value in its free pages; releasing them gives only zeros.
    pub(crate) poison: u32,
}

impl<M: GuestMemory, R: Release> Work<M> for Reporting<'_, R> {
    fn chain(&mut self, chain: Chain<'_, M>) -> Verdict {
        self.counters.report_buffers += 1;
        let start = self.runs.len();
        // The pages themselves are the buffer: the device could write into them, so that is what they are marked as.
        let outcome = chain.walk(|direction, descriptor| {
            if direction != Direction::ToDriver {
                return Err(Malformed);
            }
            self.runs.extend(Run::within(
                descriptor.addr().raw_value(),
                u64::from(descriptor.len()),
            ));
            Ok(())
        });
        if outcome.is_err() {
            self.runs.truncate(start);
            self.counters.malformed_chains += 1;
        }
        Verdict::Return
    }

    fn is_full(&self) -> bool {
        self.runs.len() >= RANGES_PER_BATCH
    }

    fn finish(&mut self) {
        self.counters.repeated += merge_runs(self.runs);
        let named: u64 = self.runs.iter().map(|run| run.count()).sum();
        let runs: Vec<Run> = self
            .runs
            .drain(..)
            .flat_map(|run| self.store.ballooned.clip(run))
            .collect();
        let kept: u64 = runs.iter().map(|run| run.count()).sum();
        self.counters.foreign += named - kept;
        self.counters.reported += kept;
        if self.poison == 0 {
            self.store.release(&runs, Reason::Reported, self.counters);
        } else {
            self.counters.kept_for_poison += kept;
        }
    }
}
