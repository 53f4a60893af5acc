//! Free page hinting: the guest lists its free pages on request, so that a migration need not copy them.

use vm_memory::{Address, Bytes, GuestMemory};

use crate::chain::{Chain, Direction, Malformed};
use crate::config::HINT_STOP;
use crate::counters::Counters;
use crate::frame::Run;
use crate::frame_set::FrameSet;
use crate::ring::{Verdict, Work};

/// One round of hinting.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    /// Its number in the configuration space.
    pub(crate) command: u32,
    /// The number that the guest last sent ahead of its hints.
    pub(crate) guest: Option<u32>,
    /// The frames it listed.
    pub(crate) free: FrameSet,
    /// Whether it said that there are no more.
    pub(crate) complete: bool,
}

pub(crate) struct Hinting<'d> {
    pub(crate) round: Option<&'d mut Round>,
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
        match (outcome, &mut self.round) {
            (Err(Malformed), _) => self.counters.malformed_chains += 1,
            (Ok(()), Some(round)) => round.take(command, &free, self.counters),
            (Ok(()), None) => self.counters.stale_hints += free.iter().map(|run| run.count()).sum::<u64>(),
        }
        Verdict::Return
    }
}

impl Round {
    fn take(&mut self, command: Option<u32>, free: &[Run], counters: &mut Counters) {
        if let Some(command) = command {
            self.complete |= command == HINT_STOP && self.guest == Some(self.command);
            self.guest = Some(command);
        }
        for &run in free {
            if self.guest == Some(self.command) {
                let before = self.free.count(run);
                counters.hinted += self.free.insert(run);
                let known: u64 = self.free.clip(run).map(Run::count).sum();
                counters.foreign += run.count() - known;
                counters.repeated += before;
            } else {
                counters.stale_hints += run.count();
            }
        }
    }
}
