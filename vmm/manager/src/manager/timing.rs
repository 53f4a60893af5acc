//! When rounds are due.

use std::time::{Duration, Instant};

/// Shortest time between two rounds.
const QUICK: Duration = Duration::from_millis(20);

/// Rounds take no more than this part of a CPU, as a divisor, however often a guest asks for one.
const PART: u32 = 20;

/// Longest time for which a guest that waits has no round: more guests than that suffices for cost more of a CPU.
const LONGEST_REST: Duration = Duration::from_millis(230);

/// Most that may pass in one round. Where there is more between two, the manager did not run, and nothing that guests
/// did or left undone meanwhile is known.
const LONGEST_ROUND: Duration = Duration::from_secs(2);

/// Time between two rounds where the one before could not plan.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// When the next round is due.
#[derive(Debug)]
pub(super) struct RoundTiming {
    last: Instant,
    soonest: Duration,
    next: Duration,
    /// What a guest waits for is not answered yet.
    urgent: bool,
}

impl RoundTiming {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last: now,
            soonest: QUICK,
            next: AGAIN,
            urgent: false,
        }
    }

    /// A guest waits for the next round. Whether it is due earlier for that.
    pub(super) fn hurry(&mut self) -> bool {
        !std::mem::replace(&mut self.urgent, true)
    }

    /// When the next round may be, and when it must be.
    pub(super) fn window(&self) -> (Instant, Instant) {
        (self.last + self.soonest, self.last + self.next)
    }

    /// When the next round is due.
    pub(super) fn due(&self) -> Instant {
        let (soonest, latest) = self.window();
        if self.urgent { soonest } else { latest }
    }

    /// A round begins at `now`. Returns the time since the one before, and how much of it counts.
    pub(super) fn begin(&mut self, now: Instant) -> (Duration, Duration) {
        let gap = now.saturating_duration_since(self.last);
        (self.last, self.urgent) = (now, false);
        (gap, gap.min(LONGEST_ROUND))
    }

    /// It took `cpu` of a thread's time, and the next is due after `next`. Time for which others had the CPU is not
    /// counted: on a busy machine rounds would become rare just when they are needed.
    pub(super) fn end(&mut self, cpu: Duration, next: Duration) {
        self.soonest = (cpu * PART).clamp(QUICK, LONGEST_REST);
        self.next = next.max(self.soonest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_rest_by_the_cpu_they_took_and_never_long() {
        let begin = Instant::now();
        let mut timing = RoundTiming::new(begin);
        let mut rests = |cpu_ms: u64, next_ms: u64| {
            timing.end(Duration::from_millis(cpu_ms), Duration::from_millis(next_ms));
            (timing.soonest.as_millis(), timing.next.as_millis())
        };
        assert_eq!(rests(0, 1000), (20, 1000));
        assert_eq!(rests(5, 1000), (100, 1000));
        assert_eq!(rests(5, 0), (100, 100));
        // A thousand guests on a slow machine: a guest that waits is still heard four times a second.
        assert_eq!(rests(400, 0), (230, 230));
        assert_eq!(rests(60_000, 250), (230, 250));
    }

    #[test]
    fn gaps_are_counted_from_begin_to_begin() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut timing = RoundTiming::new(begin);
        let millis = |(gap, counts): (Duration, Duration)| (gap.as_millis(), counts.as_millis());
        assert_eq!(millis(timing.begin(at(1000))), (1000, 1000));
        assert_eq!(millis(timing.begin(at(1300))), (300, 300));
        assert_eq!(millis(timing.begin(at(36_300))), (35_000, 2000));
        assert_eq!(millis(timing.begin(begin)), (0, 0), "a clock that goes back");
    }

    #[test]
    fn a_guest_that_waits_brings_the_next_round_forward_once() {
        let begin = Instant::now();
        let mut timing = RoundTiming::new(begin);
        assert_eq!(timing.due(), begin + AGAIN);
        assert!(timing.hurry() && !timing.hurry());
        assert_eq!(timing.due(), begin + QUICK);
        timing.begin(begin + QUICK);
        assert_eq!(timing.due(), begin + QUICK + AGAIN);
    }
}
