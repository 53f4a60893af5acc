//! Rounds of free page hinting: which one is on, and what the guest listed in it.

use crate::config::{HINT_DONE, HINT_STOP, next_hint_command};
use crate::counters::Counters;
use crate::frame::Run;
use crate::frame_set::FrameSet;

/// All rounds since the device was made. At most one is on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rounds {
    /// The command number of the last round, zero before the first. It outlives resets and snapshots: a driver
    /// takes a number that it has seen for the round that it has listed already, and lists nothing.
    pub(crate) last: u32,
    pub(crate) phase: Phase,
}

/// What the host told the driver last.
#[derive(Debug, Clone, Default)]
pub(crate) enum Phase {
    /// Nothing since the last reset.
    #[default]
    Idle,
    /// List free pages under the last command number.
    Running(Round),
    /// List no more, but leave the listed pages alone.
    Stopped(Round),
    /// The listed pages may be used again.
    Done,
}

/// One round.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    /// The number that the guest last sent ahead of its hints.
    pub(crate) guest: Option<u32>,
    /// The frames it listed.
    pub(crate) free: FrameSet,
    /// Whether it said that there are no more.
    pub(crate) complete: bool,
}

impl Rounds {
    /// What the configuration space says.
    pub(crate) fn command(&self) -> u32 {
        match self.phase {
            Phase::Idle | Phase::Stopped(_) => HINT_STOP,
            Phase::Running(_) => self.last,
            Phase::Done => HINT_DONE,
        }
    }

    /// Begins a round with a number that no round had before; `free` is the empty set over the guest's memory.
    pub(crate) fn start(&mut self, free: FrameSet) {
        self.last = next_hint_command(self.last);
        self.phase = Phase::Running(Round {
            guest: None,
            free,
            complete: false,
        });
    }

    /// Ends the listing of a round that is on.
    pub(crate) fn stop(&mut self) {
        self.phase = match std::mem::take(&mut self.phase) {
            Phase::Running(round) => Phase::Stopped(round),
            other => other,
        };
    }

    /// Lets the guest have the listed pages, where it was ever asked for some. From then on it may write them, so
    /// that the list means nothing any more.
    pub(crate) fn finish(&mut self) {
        if !matches!(self.phase, Phase::Idle) {
            self.phase = Phase::Done;
        }
    }

    /// The driver is gone, and its pages with it.
    pub(crate) fn reset(&mut self) {
        self.phase = Phase::Idle;
    }

    /// The round whose pages the guest leaves alone.
    pub(crate) fn held(&self) -> Option<&Round> {
        match &self.phase {
            Phase::Running(round) | Phase::Stopped(round) => Some(round),
            Phase::Idle | Phase::Done => None,
        }
    }

    /// Takes what the guest sent in one buffer: a command number, free pages, or both.
    pub(crate) fn take(&mut self, command: Option<u32>, free: &[Run], counters: &mut Counters) {
        let current = self.last;
        let Phase::Running(round) = &mut self.phase else {
            counters.stale_hints += free.iter().map(|run| run.count()).sum::<u64>();
            return;
        };
        if let Some(command) = command {
            round.complete |= command == HINT_STOP && round.guest == Some(current);
            round.guest = Some(command);
        }
        if round.guest == Some(current) {
            free.iter().for_each(|run| round.insert(*run, counters));
        } else {
            counters.stale_hints += free.iter().map(|run| run.count()).sum::<u64>();
        }
    }
}

impl Round {
    fn insert(&mut self, run: Run, counters: &mut Counters) {
        counters.repeated += self.free.count(run);
        counters.hinted += self.free.insert(run);
        let known: u64 = self.free.clip(run).map(Run::count).sum();
        counters.foreign += run.count() - known;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Frame;

    fn run(first: u64, count: u64) -> Run {
        Run::new(Frame::new(first), count).unwrap()
    }

    fn started(rounds: &mut Rounds) -> u32 {
        rounds.start(FrameSet::new(&[run(0, 1000)]));
        rounds.command()
    }

    #[test]
    fn every_round_has_a_number_of_its_own_whatever_happens_between_two() {
        let mut rounds = Rounds::default();
        let between: [fn(&mut Rounds); 5] = [
            |_| (),
            Rounds::stop,
            Rounds::finish,
            Rounds::reset,
            |rounds| {
                rounds.stop();
                rounds.finish();
                rounds.reset();
            },
        ];
        let mut seen = vec![HINT_STOP, HINT_DONE];
        for happens in between.iter().cycle().take(20) {
            let command = started(&mut rounds);
            assert!(!seen.contains(&command), "{command} in {seen:?}");
            seen.push(command);
            happens(&mut rounds);
        }
    }

    #[test]
    fn the_driver_reads_stop_done_or_the_number() {
        let mut rounds = Rounds::default();
        rounds.finish();
        rounds.stop();
        assert_eq!(rounds.command(), HINT_STOP, "no round to finish or stop");
        let command = started(&mut rounds);
        rounds.take(Some(command), &[run(5, 2)], &mut Counters::default());
        rounds.stop();
        assert_eq!(rounds.command(), HINT_STOP);
        assert_eq!(
            rounds.held().unwrap().free.len(),
            2,
            "the guest leaves them alone"
        );
        rounds.finish();
        assert_eq!(rounds.command(), HINT_DONE, "a stopped round can be finished");
        assert!(rounds.held().is_none());
        rounds.stop();
        assert_eq!(rounds.command(), HINT_DONE, "what is done is not stopped");
        rounds.reset();
        assert_eq!(rounds.command(), HINT_STOP);
    }

    #[test]
    fn hints_count_while_their_round_is_on_and_at_no_other_time() {
        let mut rounds = Rounds::default();
        let mut counters = Counters::default();
        rounds.take(Some(2), &[run(0, 1)], &mut counters);
        let command = started(&mut rounds);
        rounds.take(None, &[run(0, 10)], &mut counters);
        rounds.take(Some(command + 1), &[run(0, 100)], &mut counters);
        assert_eq!((counters.stale_hints, counters.hinted), (111, 0));
        rounds.take(Some(command), &[], &mut counters);
        rounds.take(None, &[run(990, 20), run(995, 1)], &mut counters);
        assert_eq!(
            (counters.hinted, counters.foreign, counters.repeated),
            (10, 10, 1)
        );
        assert!(!rounds.held().unwrap().complete);
        for (over, stale) in [(Rounds::stop as fn(&mut Rounds), 112), (Rounds::finish, 113)] {
            over(&mut rounds);
            rounds.take(Some(command), &[run(3, 1)], &mut counters);
            assert_eq!((counters.stale_hints, counters.hinted), (stale, 10));
        }
    }

    #[test]
    fn only_the_end_of_its_own_list_completes_a_round() {
        let mut rounds = Rounds::default();
        let mut counters = Counters::default();
        let command = started(&mut rounds);
        rounds.take(Some(HINT_STOP), &[], &mut counters);
        rounds.take(Some(command + 7), &[], &mut counters);
        rounds.take(Some(HINT_STOP), &[], &mut counters);
        assert!(!rounds.held().unwrap().complete);
        rounds.take(Some(command), &[], &mut counters);
        rounds.take(Some(HINT_STOP), &[run(1, 1)], &mut counters);
        assert!(rounds.held().unwrap().complete);
        assert_eq!(
            (counters.hinted, counters.stale_hints),
            (0, 1),
            "nothing follows a stop"
        );
    }
}
