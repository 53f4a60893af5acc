//! Free page hinting: the guest lists its free pages on request, so that a migration need not copy them.

use vm_memory::{Address, Bytes, GuestMemory};

use crate::chain::{Chain, Direction, Malformed};
use crate::counters::Counters;
use crate::frame::Run;
use crate::ring::{Verdict, Work};
use crate::rounds::Rounds;

pub(crate) struct Hinting<'d> {
    pub(crate) rounds: &'d mut Rounds,
    pub(crate) counters: &'d mut Counters,
}

impl<M: GuestMemory> Work<M> for Hinting<'_> {
    fn chain(&mut self, chain: Chain<'_, M>) -> Verdict {
        self.counters.hint_buffers += 1;
        let memory = chain.memory();
        let mut command = None;
        let mut free = Vec::new();
        let outcome = chain.walk(|direction, descriptor| {
            match direction {
                Direction::ToDriver => {
                    free.extend(Run::within(
                        descriptor.addr().raw_value(),
                        u64::from(descriptor.len()),
                    ));
                }
                Direction::ToDevice if descriptor.len() == 4 => {
                    let word: u32 = memory.read_obj(descriptor.addr()).map_err(|_| Malformed)?;
                    command = Some(u32::from_le(word));
                }
                Direction::ToDevice => return Err(Malformed),
            }
            Ok(())
        });
        match outcome {
            Err(Malformed) => self.counters.malformed_chains += 1,
            Ok(()) => self.rounds.take(command, &free, self.counters),
        }
        Verdict::Return
    }
}
