//! What went wrong with guests' processes, and how quickly the manager is.
//!
//! Whoever breaks the rules is cut off, and kept out for a while that doubles with each time: a process that starts
//! again and again costs the manager little, and one that did it once by mistake is back soon.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Longest time that a process is kept out.
const LONGEST_BAR: Duration = Duration::from_secs(64);

/// Messages from one guest in a row, beyond those that [`PER_SECOND`] allows. A process that was held up may send what
/// it has saved.
const BURST: f64 = 120.0;

/// Messages a second that a guest may send for long: it has one to say, and where memory is short some forty more.
const PER_SECOND: f64 = 60.0;

/// Connections that one process may have at a door at a time.
const CONNECTIONS: u32 = 16;

/// Connections that one process may open in a row, and a second for long: it needs two, and again after a loss.
const KNOCKS: f64 = 40.0;
const KNOCKS_PER_SECOND: f64 = 4.0;

/// Processes that are remembered before those that have been quiet are forgotten.
const CALLERS: usize = 256;

/// Handling times that are remembered.
const REMEMBERED: usize = 8192;

/// How a guest's process behaved on its connections.
#[derive(Debug, Clone, Copy, Default)]
pub struct Conduct {
    /// How often it was cut off for breaking the rules.
    pub cut_offs: u32,
    barred_until: Option<Instant>,
}

impl Conduct {
    /// It broke the rules.
    pub(super) fn offend(&mut self) {
        self.cut_offs = self.cut_offs.saturating_add(1);
        let bar = Duration::from_secs(1 << self.cut_offs.min(6)).min(LONGEST_BAR);
        self.barred_until = Some(Instant::now() + bar);
    }

    /// Whole seconds for which it is kept out, if it is.
    pub(super) fn barred(&self) -> Option<u64> {
        let left = self.barred_until?.checked_duration_since(Instant::now())?;
        Some(left.as_secs() + 1)
    }
}

/// So many at once, and so many a second for long.
#[derive(Debug)]
pub(super) struct Allowance {
    burst: f64,
    per_second: f64,
    left: f64,
    since: Instant,
}

impl Allowance {
    /// Messages on one connection.
    pub(super) fn of_messages() -> Self {
        Self::new(BURST, PER_SECOND)
    }

    fn new(burst: f64, per_second: f64) -> Self {
        Self {
            burst,
            per_second,
            left: burst,
            since: Instant::now(),
        }
    }

    /// Takes one; `false` when it is one too many.
    pub(super) fn take(&mut self) -> bool {
        self.earn();
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }

    /// Whether nothing of it is used.
    fn is_whole(&mut self) -> bool {
        self.earn();
        self.left >= self.burst
    }

    fn earn(&mut self) {
        let earned = self.since.elapsed().as_secs_f64() * self.per_second;
        self.since = Instant::now();
        self.left = (self.left + earned).min(self.burst);
    }
}

/// Who stands at the doors.
#[derive(Debug, Default)]
pub(super) struct Crowd(BTreeMap<u32, Caller>);

/// A process at the doors.
#[derive(Debug)]
struct Caller {
    connections: u32,
    knocks: Allowance,
}

impl Crowd {
    /// Lets one more connection of process `pid` in, unless it has enough or knocks too often.
    pub(super) fn enter(&mut self, pid: u32) -> bool {
        if self.0.len() >= CALLERS {
            self.0
                .retain(|_, caller| caller.connections > 0 || !caller.knocks.is_whole());
        }
        let caller = self.0.entry(pid).or_insert_with(|| Caller {
            connections: 0,
            knocks: Allowance::new(KNOCKS, KNOCKS_PER_SECOND),
        });
        let allowed = caller.knocks.take() && caller.connections < CONNECTIONS;
        caller.connections += u32::from(allowed);
        allowed
    }

    /// One of them has ended.
    pub(super) fn leave(&mut self, pid: u32) {
        if let Some(caller) = self.0.get_mut(&pid) {
            caller.connections -= 1;
        }
    }
}

/// What the manager counts about its doors. Counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Doings {
    /// Reports taken in.
    pub reports: u64,
    /// Guests that were not admitted.
    pub refused: u64,
    /// Connections cut off because the process at the other end broke the rules or did not read.
    pub cut_offs: u64,
    /// Connections turned away because their process had too many.
    pub crowded: u64,
}

/// How long reports took from being sent to being known to the policy.
#[derive(Debug, Default)]
pub struct Handling {
    /// Microseconds; a ring.
    times: Vec<u32>,
    next: usize,
}

/// What [`Handling`] adds up to, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HandlingTimes {
    /// Reports that it is about: the latest.
    pub count: u64,
    /// Half of them took no longer.
    pub p50: u64,
    /// 99 of 100 took no longer.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

impl Handling {
    /// A report that was sent at `sent_us` has been taken in.
    pub(super) fn note(&mut self, sent_us: u64) {
        // The sender's word: what lies in the future, or was never filled in, is none.
        let Some(micros) = now_us().checked_sub(sent_us).filter(|_| sent_us > 0) else {
            return;
        };
        let micros = u32::try_from(micros).unwrap_or(u32::MAX);
        if self.times.len() < REMEMBERED {
            self.times.push(micros);
        } else {
            self.times[self.next] = micros;
        }
        self.next = (self.next + 1) % REMEMBERED;
    }

    /// The times of the latest reports.
    pub fn times(&self) -> HandlingTimes {
        let mut sorted = self.times.clone();
        sorted.sort_unstable();
        let at = |part: usize| sorted.get((sorted.len() * part / 100).min(sorted.len().max(1) - 1));
        let micros = |part| at(part).copied().map_or(0, u64::from);
        HandlingTimes {
            count: sorted.len() as u64,
            p50: micros(50),
            p99: micros(99),
            max: micros(100),
        }
    }
}

/// The machine's monotonic clock, which all its processes share, in microseconds.
pub fn now_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_uses_its_allowance_up_and_one_message_a_second_never_does() {
        let mut allowance = Allowance::of_messages();
        let taken = (0..1000).take_while(|_| allowance.take()).count();
        assert!((BURST as usize..=BURST as usize + 5).contains(&taken), "{taken}");
        let mut steady = Allowance::of_messages();
        for _ in 0..1000 {
            steady.since = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
            assert!(steady.take());
        }
    }

    #[test]
    fn who_offends_again_stays_out_longer() {
        let mut conduct = Conduct::default();
        assert_eq!(conduct.barred(), None);
        conduct.offend();
        assert!(conduct.barred().unwrap() <= 2);
        for _ in 0..40 {
            conduct.offend();
        }
        assert!((60..=LONGEST_BAR.as_secs()).contains(&conduct.barred().unwrap()));
    }

    #[test]
    fn a_process_has_so_many_connections_and_no_more() {
        let mut crowd = Crowd::default();
        // Fewer knocks than are allowed in a row: what is left decides below.
        let entered = (0..30).filter(|_| crowd.enter(7)).count();
        assert_eq!(entered, CONNECTIONS as usize);
        assert!(crowd.enter(8));
        crowd.leave(7);
        assert!(crowd.enter(7));
    }

    #[test]
    fn times_are_those_of_the_latest_reports() {
        let mut handling = Handling::default();
        assert_eq!(handling.times(), HandlingTimes::default());
        handling.note(0);
        handling.note(u64::MAX);
        assert_eq!(handling.times().count, 0, "nonsense is left out");
        for _ in 0..REMEMBERED + 5 {
            handling.note(now_us() - 1000);
        }
        let times = handling.times();
        assert_eq!(times.count, REMEMBERED as u64);
        assert!(
            times.p50 >= 1000 && times.p50 <= times.p99 && times.p99 <= times.max,
            "{times:?}"
        );
    }
}
