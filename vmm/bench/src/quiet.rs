//! When is a fleet quiet? When its engines have found what there is: by their progress, not by time alone.
//!
//! An engine that gets no CPU finds nothing, and so does one whose guest gets none to fill its memory with.

use std::time::{Duration, Instant};

use levy_protocol::control::Request;

use super::testbed::{Guest, Testbed, TestbedError};

/// Passes without a find until a guest is quiet: the one under way, one that arms pages, one that finds them unwritten,
/// and one in which others answer for what was reported.
const PASSES: u64 = 4;

/// One page found of this many is no change: a guest that rests touches some pages all the time.
const NOISE: u64 = 200;

/// Time between two looks at the engines.
const LOOK: Duration = Duration::from_secs(5);

/// How much longer than asked for a fleet may take to become quiet.
const PATIENCE: Duration = Duration::from_secs(600);

/// What one guest's engine has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct EngineProgress {
    /// Passes over the memory.
    passes: u64,
    /// Pages that cost nothing: shared ones and zeros.
    found: u64,
    /// Pages in blocks that the engine has not come to yet.
    unmanaged: u64,
}

impl EngineProgress {
    /// As the process of `guest` tells it.
    fn of(testbed: &Testbed, guest: Guest) -> Result<Self, TestbedError> {
        let stats = testbed.ask(guest, &Request::Stats)?;
        let number = |name| stats["pages"][name].as_u64().unwrap_or_default();
        Ok(Self {
            passes: number("passes"),
            found: number("shared") + number("zero"),
            unmanaged: number("unmanaged"),
        })
    }

    /// Whether more was found, or lost, between `before` and this than a guest that rests brings about.
    fn is_change(self, before: Self) -> bool {
        self.found.abs_diff(before.found) > before.found / NOISE || self.unmanaged != before.unmanaged
    }
}

/// Guests that are watched until they are quiet.
#[derive(Debug)]
struct Watch {
    /// For how long and for how many passes nothing may change.
    time: Duration,
    /// The last change.
    since: Duration,
    before: Vec<EngineProgress>,
}

impl Watch {
    fn new(time: Duration, now: Duration, guests: Vec<EngineProgress>) -> Self {
        Self {
            time,
            since: now,
            before: guests,
        }
    }

    /// Whether all guests are quiet, as they are at `now`.
    fn look(&mut self, now: Duration, guests: Vec<EngineProgress>) -> bool {
        let pairs = || guests.iter().zip(&self.before);
        if pairs().any(|(guest, before)| guest.is_change(*before)) {
            *self = Self::new(self.time, now, guests);
            return false;
        }
        now.saturating_sub(self.since) >= self.time
            && pairs().all(|(guest, before)| guest.passes >= before.passes + PASSES)
    }
}

/// Waits until the engines of `guests` have found nothing for `time` and some passes over all memory, but not for ever:
/// returns whether they are quiet.
///
/// # Errors
/// When a guest ends or does not answer, or the user interrupts.
pub(super) fn wait(testbed: &mut Testbed, guests: &[Guest], time: Duration) -> Result<bool, TestbedError> {
    let began = Instant::now();
    let progress = |testbed: &Testbed| -> Result<Vec<_>, TestbedError> {
        guests
            .iter()
            .map(|guest| EngineProgress::of(testbed, *guest))
            .collect()
    };
    let mut watch = Watch::new(time, Duration::ZERO, progress(testbed)?);
    while began.elapsed() < time + PATIENCE {
        testbed.pass(LOOK)?;
        let now = progress(testbed)?;
        if watch.look(began.elapsed(), now) {
            return Ok(true);
        }
    }
    testbed.say("engines find more all the time: measured all the same");
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(passes: u64, found: u64) -> EngineProgress {
        EngineProgress {
            passes,
            found,
            unmanaged: 0,
        }
    }

    #[test]
    fn engines_that_find_nothing_more_are_quiet_when_the_time_is_up() {
        let mut watch = Watch::new(MINUTE, MINUTE, vec![at(7, 1000), at(0, 3000)]);
        assert!(!watch.look(MINUTE * 2 - LOOK, vec![at(90, 1004), at(90, 2995)]));
        assert!(watch.look(MINUTE * 2, vec![at(99, 1005), at(99, 2995)]));
    }

    #[test]
    fn a_guest_whose_engine_gets_no_cpu_is_not_quiet() {
        let mut watch = Watch::new(MINUTE, MINUTE, vec![at(7, 1000), at(7, 1000)]);
        assert!(!watch.look(MINUTE * 100, vec![at(99, 1000), at(7 + PASSES - 1, 1000)]));
        assert!(watch.look(MINUTE * 101, vec![at(99, 1000), at(7 + PASSES, 1000)]));
    }

    #[test]
    fn whatever_is_found_begins_the_time_and_the_passes_anew() {
        let settled = |guest: EngineProgress| EngineProgress {
            unmanaged: 512,
            ..guest
        };
        for (before, change) in [
            (at(1, 1000), at(50, 1006)),
            (at(1, 1000), at(50, 900)),
            (at(1, 0), at(50, 1)),
            (settled(at(1, 1000)), at(50, 1000)),
        ] {
            let mut watch = Watch::new(MINUTE, MINUTE, vec![before]);
            assert!(!watch.look(MINUTE * 5, vec![change]), "{change:?}");
            assert!(!watch.look(MINUTE * 5 + LOOK, vec![EngineProgress { passes: 99, ..change }]));
            assert!(!watch.look(MINUTE * 6, vec![EngineProgress { passes: 52, ..change }]));
            assert!(watch.look(MINUTE * 6, vec![EngineProgress { passes: 54, ..change }]));
        }
    }
}
