//! How long a thread has really listened.
//!
//! A manager can be stopped for a while: by a debugger, a frozen control group, a machine that swaps. What guests said
//! meanwhile lies in the sockets' buffers, and they were not silent because the manager was. So silence is counted in
//! time that the listening thread ran, and what is due for time that it did not run is made up for.

use std::time::{Duration, Instant};

/// Longest pause between two looks that still counts as listening.
const LISTENING: Duration = Duration::from_millis(500);

/// The time between looks, told apart. Listening begins with the first of them.
#[derive(Debug, Default)]
pub(super) struct ListeningTime {
    last: Option<Instant>,
}

/// What has passed since the look before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passed {
    /// Time in which whatever was said was heard.
    pub(super) listened: Duration,
    /// Time in which this thread did not run.
    pub(super) missed: Duration,
}

impl ListeningTime {
    /// One look at `now`.
    pub(super) fn look(&mut self, now: Instant) -> Passed {
        let last = self.last.replace(now).unwrap_or(now);
        let passed = now.saturating_duration_since(last);
        let listened = passed.min(LISTENING);
        Passed {
            listened,
            missed: passed - listened,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_not_time_spent_listening() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut listening_time = ListeningTime::default();
        let millis = |passed: Passed| (passed.listened.as_millis(), passed.missed.as_millis());
        assert_eq!(millis(listening_time.look(begin)), (0, 0));
        assert_eq!(millis(listening_time.look(at(250))), (250, 0));
        assert_eq!(millis(listening_time.look(at(36_250))), (500, 35_500));
        assert_eq!(millis(listening_time.look(at(36_300))), (50, 0));
        // A clock that went back counts as no time at all.
        assert_eq!(millis(listening_time.look(at(36_000))), (0, 0));
    }
}
