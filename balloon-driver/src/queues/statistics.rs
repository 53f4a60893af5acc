//! Statistics: the guest's one buffer stays with the device until fresh numbers are wanted.

use std::time::Instant;

use vm_memory::GuestMemory;

use crate::chain::{Chain, Extent, Malformed};
use crate::counters::Counters;
use crate::ring::{Verdict, Work};
use crate::statistics::{self, STATISTIC_SIZE, Statistics};

/// How many statistics the device reads from one buffer. Linux 6.12 sends 16.
const STATISTICS_PER_BUFFER: usize = 256;

pub(crate) struct Parking<'d> {
    pub(crate) latest: &'d mut Option<Statistics>,
    pub(crate) counters: &'d mut Counters,
}

impl<M: GuestMemory> Work<M> for Parking<'_> {
    fn chain(&mut self, chain: Chain<'_, M>) -> Verdict {
        self.counters.statistics_buffers += 1;
        let mut bytes = Vec::new();
        match chain.read(&mut bytes, STATISTICS_PER_BUFFER * STATISTIC_SIZE) {
            Err(Malformed) => self.counters.malformed_chains += 1,
            Ok(extent) => {
                self.counters.oversized_buffers += u64::from(extent == Extent::Cut);
                let (values, unknown) = statistics::parse(&bytes);
                self.counters.unknown_statistics += unknown;
                *self.latest = Some(Statistics {
                    values,
                    received: Instant::now(),
                });
            }
        }
        // Parked even when it makes no sense: returning it at once would ask for the next one, without end.
        Verdict::Park
    }
}
