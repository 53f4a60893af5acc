//! What went wrong with guests' processes, and how quickly the manager is.
//!
//! A process that breaks the rules is cut off, and kept out for a while that doubles with each time: a process that
//! starts again and again costs the manager little, and one that did it once by mistake is back soon.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::peer_lines::PeerLines;
use levy_protocol::link::now_us;

/// Longest time that a process is kept out.
const LONGEST_BAR: Duration = Duration::from_secs(64);

/// Messages from one guest in a row, beyond those that [`PER_SECOND`] allows. A process that was held up may send what
/// it has saved.
const BURST: f64 = 120.0;

/// Messages a second that a guest may send in the long run: it has one to say, and where memory is short some forty
/// more.
const PER_SECOND: f64 = 60.0;

/// Connections that one process may have at a door at a time.
const CONNECTIONS: u32 = 16;

/// Connections that one process may open in a row, and a second in the long run: it needs two, and again after a loss.
const KNOCKS: f64 = 40.0;
const KNOCKS_PER_SECOND: f64 = 4.0;

/// Processes that are remembered before those that have been quiet are forgotten.
const CALLERS: usize = 256;

/// Handling times that are remembered.
const REPORTS: usize = 8192;

/// Rounds that are remembered: some half a minute of them where they come as often as they may with many guests.
const ROUNDS: usize = 120;

/// Most messages that are allowed for the time in which the manager did not listen: what fits a socket's buffer.
const MADE_UP: f64 = 8192.0;

/// Time between two words in the log about what the system refuses.
const COMPLAINT: Duration = Duration::from_secs(60);

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

/// How many at once, and how many a second in the long run.
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

    /// What could be sent while no thread listened for `missed` is allowed on top of the rest.
    pub(super) fn make_up_for(&mut self, missed: Duration) {
        self.left += (missed.as_secs_f64() * self.per_second).min(MADE_UP);
    }

    /// Whether nothing of it is used.
    fn is_whole(&mut self) -> bool {
        self.earn();
        self.left >= self.burst
    }

    fn earn(&mut self) {
        let earned = self.since.elapsed().as_secs_f64() * self.per_second;
        self.since = Instant::now();
        if self.left < self.burst {
            self.left = (self.left + earned).min(self.burst);
        }
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
    /// Connections not served because the system refused a descriptor, a thread or memory.
    pub starved: u64,
    /// Requests at the API by guests' processes, which were refused.
    pub intruders: u64,
}

/// What is counted and timed, all together.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) doings: Doings,
    /// From a report's sending to the policy's knowing it.
    pub(super) handling: Times,
    pub(super) rounds: Rounds,
    /// Words about what the system refuses.
    pub(super) shortages: Rarely,
    pub(super) peer_lines: PeerLines,
    /// Words about guests' processes that ask at the API.
    pub(super) intrusions: Rarely,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            doings: Doings::default(),
            handling: Times::new(REPORTS),
            rounds: Rounds {
                count: 0,
                gaps: Times::new(ROUNDS),
                work: Times::new(ROUNDS),
            },
            shortages: Rarely::default(),
            peer_lines: PeerLines::default(),
            intrusions: Rarely::default(),
        }
    }
}

/// How often rounds come, and what each takes.
#[derive(Debug)]
pub(super) struct Rounds {
    pub(super) count: u64,
    /// From the begin of one to that of the next.
    pub(super) gaps: Times,
    /// From begin to end.
    pub(super) work: Times,
}

impl Rounds {
    /// One more, `gap` after the one before began.
    pub(super) fn note(&mut self, gap: Duration, work: Duration) {
        self.count += 1;
        self.gaps.note(gap.as_micros() as u64);
        self.work.note(work.as_micros() as u64);
    }
}

/// What is said once a minute at most.
#[derive(Debug, Default)]
pub(super) struct Rarely(Option<Instant>);

impl Rarely {
    /// Whether it is said now.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= COMPLAINT);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

/// The latest times of one kind.
#[derive(Debug)]
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

/// Microseconds since `then`; none where that lies in the future or is not a time.
pub(super) fn since_us(then: u64) -> Option<u64> {
    now_us().checked_sub(then).filter(|_| then > 0)
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
    fn what_was_sent_while_nobody_listened_is_no_flood() {
        let mut allowance = Allowance::of_messages();
        allowance.make_up_for(Duration::from_secs(36));
        let stalled = BURST + 36.0 * PER_SECOND;
        let taken = (0..10_000).take_while(|_| allowance.take()).count();
        assert!(
            (stalled as usize..=stalled as usize + 5).contains(&taken),
            "{taken}"
        );
        // However long it was: nothing can send more than a buffer holds.
        allowance.make_up_for(Duration::from_secs(1 << 40));
        assert!((0..100_000).take_while(|_| allowance.take()).count() < 10_000);
    }

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
    fn a_time_that_lies_in_the_future_is_none() {
        assert_eq!((since_us(0), since_us(u64::MAX)), (None, None));
        assert!(since_us(now_us() - 1000).unwrap() >= 1000);
    }
}
