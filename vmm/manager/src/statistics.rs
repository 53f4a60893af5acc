//! What the manager counts and times about itself.

use std::time::{Duration, Instant};

use super::peer_lines::PeerLines;
use super::repeats::Repeats;

/// Handling times that are remembered.
const REPORTS: usize = 8192;

/// Rounds that are remembered: some half a minute of them where they come as often as they may with many guests.
const ROUNDS: usize = 120;

/// Time between two words in the log about what the system refuses.
const COMPLAINT: Duration = Duration::from_secs(60);

/// What the manager counts about its sockets. Counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketCounters {
    /// Reports taken in.
    pub reports: u64,
    /// Reports dropped because they cannot be true.
    pub impossible: u64,
    /// Guests that were not admitted.
    pub refused: u64,
    /// Connections cut off because the process at the other end broke the rules or did not read.
    pub cut_offs: u64,
    /// Connections turned away because their process had too many.
    pub crowded: u64,
    /// Connections not served because the system refused a descriptor, a thread or memory.
    pub starved: u64,
    /// Requests at the API by guests' processes, which were refused or never finished.
    pub intruders: u64,
}

/// What is counted and timed, all together.
#[derive(Debug)]
pub(super) struct Statistics {
    pub(super) counters: SocketCounters,
    /// From a report's sending to the policy's knowing it.
    pub(super) handling: Times,
    pub(super) rounds: Rounds,
    /// Words about what the system refuses.
    pub(super) shortages: AtMostEveryMinute,
    pub(super) peer_lines: PeerLines,
    pub(super) repeats: Repeats,
    /// Words about guests' processes that ask at the API.
    pub(super) intrusions: AtMostEveryMinute,
}

impl Default for Statistics {
    fn default() -> Self {
        Self {
            counters: SocketCounters::default(),
            handling: Times::new(REPORTS),
            rounds: Rounds {
                count: 0,
                gaps: Times::new(ROUNDS),
                work: Times::new(ROUNDS),
            },
            shortages: AtMostEveryMinute::default(),
            peer_lines: PeerLines::default(),
            repeats: Repeats::default(),
            intrusions: AtMostEveryMinute::default(),
        }
    }
}

/// How often rounds come, and what each takes.
#[derive(Debug, Clone)]
pub(crate) struct Rounds {
    pub(super) count: u64,
    /// From the begin of one to that of the next.
    pub(super) gaps: Times,
    /// From begin to end.
    pub(super) work: Times,
}

impl Rounds {
    /// One more begins, `gap` after the one before.
    pub(super) fn began(&mut self, gap: Duration) {
        self.count += 1;
        self.gaps.note(gap.as_micros() as u64);
    }

    /// It took this long.
    pub(super) fn took(&mut self, work: Duration) {
        self.work.note(work.as_micros() as u64);
    }
}

/// What is logged once a minute at most.
#[derive(Debug, Default)]
pub(super) struct AtMostEveryMinute(Option<Instant>);

impl AtMostEveryMinute {
    /// Whether it is said now.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let due = self
            .0
            .is_none_or(|last| now.saturating_duration_since(last) >= COMPLAINT);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

/// The latest times of one kind.
#[derive(Debug, Clone)]
pub struct Times {
    /// Microseconds; a ring.
    times: Vec<u32>,
    next: usize,
    most: usize,
}

/// What [`Times`] add up to, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spread {
    /// Times that it is about: the latest.
    pub count: u64,
    /// Half of them took no longer.
    pub p50: u64,
    /// 99 of 100 took no longer.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

impl Times {
    /// None yet; the latest `most` will be remembered.
    fn new(most: usize) -> Self {
        Self {
            times: Vec::new(),
            next: 0,
            most,
        }
    }

    /// One more.
    pub(super) fn note(&mut self, micros: u64) {
        let micros = u32::try_from(micros).unwrap_or(u32::MAX);
        if self.times.len() < self.most {
            self.times.push(micros);
        } else {
            self.times[self.next] = micros;
        }
        self.next = (self.next + 1) % self.most;
    }

    /// How they are spread.
    pub fn spread(&self) -> Spread {
        let mut sorted = self.times.clone();
        sorted.sort_unstable();
        let at = |part: usize| sorted.get((sorted.len() * part / 100).min(sorted.len().max(1) - 1));
        let micros = |part| at(part).copied().map_or(0, u64::from);
        Spread {
            count: sorted.len() as u64,
            p50: micros(50),
            p99: micros(99),
            max: micros(100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_latest() {
        let mut times = Times::new(100);
        assert_eq!(times.spread(), Spread::default());
        for time in 0..1000 {
            times.note(time);
        }
        let spread = times.spread();
        assert_eq!((spread.count, spread.p50, spread.max), (100, 950, 999));
        times.note(u64::MAX);
        assert_eq!(times.spread().max, u64::from(u32::MAX));
    }

    #[test]
    fn a_line_is_due_again_after_a_minute() {
        let (mut line, now) = (AtMostEveryMinute::default(), Instant::now());
        let due = [0, 1, 59, 60, 61, 119, 120].map(|second| line.is_due(now + Duration::from_secs(second)));
        assert_eq!(due, [true, false, false, true, false, false, true]);
    }

    #[test]
    fn half_of_the_times_are_below_the_median_and_one_in_a_hundred_is_above_the_highest_percentile() {
        let mut times = Times::new(1000);
        (0..1000).for_each(|time| times.note(time));
        let spread = times.spread();
        assert_eq!((spread.p50, spread.p99, spread.max), (500, 990, 999));
    }
}
