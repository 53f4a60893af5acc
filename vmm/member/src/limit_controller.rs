//! Keeps a process within its limit: what is seen goes in, what is to be done comes out.
//!
//! Pure: no clock, no thread, no lock, no I/O. The [limit thread](super::limit_thread) looks, asks, and carries out.
//!
//! The manager names a limit; the sum of all limits never exceeds its budget. While there is room for more than the
//! guest could take before the next look, growth is free. Then the gate closes: from now on every page that grows is
//! counted, and the limit holds exactly, however fast the guest is. Where accesses wait at the gate the manager hears
//! at once; when it has no more to give, the guest makes room for itself, by compressing and swapping pages of its own.
//!
//! A guest that has less than its minimum gives nothing up, not even for itself: it waits for what is guaranteed, which
//! others have to give up first. What has not come after [`GUARANTEE_TIMEOUT`] it takes.
//!
//! A limit outlives its manager: see [`Lease`].

mod guaranteed;
mod lease;
mod told;

use std::time::{Duration, Instant};

use levy_protocol::link::LimitStatus;

use guaranteed::Guaranteed;
pub(super) use guaranteed::GuestPages;
use lease::Lease;
use told::Told;

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;

/// Longest time between two looks.
const MAX_INTERVAL: Duration = Duration::from_millis(200);
/// Shortest time between two looks at a gate that is open.
const MIN_INTERVAL: Duration = Duration::from_millis(5);
/// A look may take this part of the time until the next one, as a divisor.
const LOOK_PART: u32 = 50;
/// The gate opens again when there was room for this many bursts for [`REOPEN_DELAY`]; at once when there is room for
/// all that the guest could ever take.
const REOPEN_BURSTS: u64 = 6;
/// See [`REOPEN_BURSTS`]; this long after it opened last the gate opens at once when there is [`AMPLE_BURSTS`] room.
const REOPEN_DELAY: Duration = Duration::from_secs(10);
/// Bursts that there is room for when a limit was raised far above what the guest has: its next accesses bring many
/// pages back, each of which would wait at the gate.
const AMPLE_BURSTS: u64 = 2 * REOPEN_BURSTS;
/// How long accesses wait for memory that is guaranteed to the guest, until it is taken without the manager's leave.
const GUARANTEE_TIMEOUT: Duration = Duration::from_secs(10);
/// The smallest burst that is reckoned with, bytes.
const MIN_BURST: u64 = 1 << 20;
/// How long waiting accesses leave it to the manager to find memory elsewhere, where it means to.
const MANAGER_TIMEOUT: Duration = Duration::from_millis(100);
/// How long a manager that had nothing to give is not asked before room is made.
const REFUSAL_HOLDS: Duration = Duration::from_secs(1);
/// Pages that make room at a time.
const RECLAIM_BATCH: u32 = 256;
/// The same where the limit itself was lowered.
const EXCESS_BATCH: u32 = 2048;
/// Credit below which room is made ahead of need, pages.
const LOW_CREDIT: u64 = 128;
/// Beyond its limit by so little a process is left alone: its own tables grow and shrink too.
const TOLERANCE: u64 = 1 << 20;

/// What one look saw.
pub(super) struct Observed<'a> {
    /// Bytes that the process holds; `None` where the kernel does not say.
    pub(super) held: Option<u64>,
    /// Pages that have grown through the closed gate, read before `held`.
    pub(super) grown: u64,
    /// Pages at which accesses wait for credit.
    pub(super) waiting: u64,
    /// Whether a manager is there that can be told something.
    pub(super) has_manager: bool,
    /// Pages that the last step's [`Action::MakeRoom`] freed.
    pub(super) freed: u32,
    /// How long the last look took that freed nothing.
    pub(super) look: Duration,
    /// Counts the guest's pages. Asked only where that matters: it takes the longer the larger the guest is.
    pub(super) pages: &'a dyn Fn() -> GuestPages,
}

/// What is to be done after a look, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// Pages that may grow from the observed `grown` on; `None` where nothing is counted.
    pub(super) credit: Option<u32>,
    /// What the manager is told; [`LimitController::tell_again`] where that fails.
    pub(super) tell: Option<LimitStatus>,
    /// What is done to the gate or to pages.
    pub(super) action: Action,
    /// When to look again: at once where [`Action::MakeRoom`] freed something, else after this time. Zero only after
    /// [`Action::CloseGate`].
    pub(super) again: Duration,
}

/// What is done to the gate or to pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    Nothing,
    /// From now on every page that grows is counted.
    CloseGate,
    /// Growth is free.
    OpenGate,
    /// Up to this many pages are compressed or swapped, of those [to spare](LimitController::spare).
    MakeRoom(u32),
}

/// Accesses wait and there is no credit.
#[derive(Debug, Clone, Copy)]
struct Wait {
    since: Instant,
    /// How often the manager had set the limit then.
    grants: u64,
    /// The last step had room made for them.
    is_served: bool,
}

/// Decides for one process what its limit demands.
#[derive(Debug)]
pub(super) struct LimitController {
    lease: Lease,
    /// Bytes beyond the limit that the manager means to give as soon as it has them.
    owed: u64,
    /// How often the manager has set the limit.
    grants: u64,
    /// What is guaranteed to the guest, bytes; common copies and the zero page are part of it.
    minimum: u64,
    /// Bytes that the process held at the last look at its limit; 0 before that.
    held: u64,
    /// Bytes a second that a guest could take here.
    speed: u64,
    /// How long one look takes.
    look: Duration,
    is_gated: bool,
    /// Since when there is plenty of room behind the closed gate.
    calm_since: Option<Instant>,
    /// When the gate was opened last.
    opened: Option<Instant>,
    wait: Option<Wait>,
    /// Memory that is guaranteed to the guest has not come in time: it is taken.
    is_overdue: bool,
    /// When the manager last had nothing to give.
    refused: Option<Instant>,
    told: Told,
    /// Pages grown through the gate at the last look.
    grown: u64,
}

impl LimitController {
    /// For a process whose guest is guaranteed `minimum` bytes and could touch `speed` bytes a second for the first time.
    /// Without a limit until one is set.
    pub(super) fn new(now: Instant, minimum: u64, speed: u64) -> Self {
        Self {
            lease: Lease::begin(now),
            owed: 0,
            grants: 0,
            minimum,
            held: 0,
            speed,
            look: Duration::ZERO,
            is_gated: false,
            calm_since: None,
            opened: None,
            wait: None,
            is_overdue: false,
            refused: None,
            told: Told::nothing(now),
            grown: 0,
        }
    }

    /// The manager sets the limit and what may be expected beyond it, in bytes; `None` lets the guest grow freely for as
    /// long as the manager is there. Says whether the limit is another one than before.
    pub(super) fn set_limit(&mut self, now: Instant, limit: Option<u64>, owed: u64) -> bool {
        self.owed = owed;
        self.grants += 1;
        let before = self.lease;
        self.lease.renew(now, limit);
        !matches!(before, Lease::Granted { limit: earlier, .. } if earlier == limit)
    }

    /// The manager is away. What it set last holds for a while, and nothing more is to be expected from it.
    pub(super) fn lose_manager(&mut self) {
        self.owed = 0;
        self.lease.lose();
    }

    /// Changes what is guaranteed to the guest, bytes.
    pub(super) fn set_minimum(&mut self, minimum: u64) {
        self.minimum = minimum;
    }

    /// The manager has not heard what it was told last.
    pub(super) fn tell_again(&mut self) {
        self.told.is_news = true;
    }

    /// Bytes of a guest with these `pages` that may be compressed or swapped: what it has above its minimum.
    pub(super) fn spare(&self, pages: GuestPages) -> u64 {
        self.guaranteed(pages).spare()
    }

    fn guaranteed(&self, pages: GuestPages) -> Guaranteed {
        Guaranteed::of(pages, self.held, self.minimum)
    }

    /// What is to be done at `now` about what was `seen`.
    pub(super) fn step(&mut self, now: Instant, seen: &Observed<'_>) -> Step {
        self.look = seen.look.min(MAX_INTERVAL / LOOK_PART);
        let Some(limit) = self.lease.limit(now, seen.held) else {
            return Step {
                credit: None,
                tell: None,
                action: self.open(now),
                again: MAX_INTERVAL,
            };
        };
        // A process that cannot be measured may not grow.
        self.held = seen.held.unwrap_or(limit);
        let limit = self.with_overdue(now, limit, seen);
        let room = limit.saturating_sub(self.held);
        if !self.is_gated {
            return self.look_at_open_gate(now, limit, seen);
        }
        let tell = self.tell(now, limit, seen.waiting);
        let (action, again) = self.look_at_closed_gate(now, limit, seen);
        Step {
            credit: Some(pages_in(room)),
            tell,
            action,
            again,
        }
    }

    fn look_at_open_gate(&mut self, now: Instant, limit: u64, seen: &Observed<'_>) -> Step {
        let room = limit.saturating_sub(self.held);
        if room > self.burst() || room > (seen.pages)().growable {
            return Step {
                credit: None,
                tell: self.tell(now, limit, 0),
                action: Action::Nothing,
                again: self.while_open(room),
            };
        }
        self.is_gated = true;
        self.calm_since = None;
        Step {
            credit: None,
            tell: None,
            action: Action::CloseGate,
            again: Duration::ZERO,
        }
    }

    fn look_at_closed_gate(&mut self, now: Instant, limit: u64, seen: &Observed<'_>) -> (Action, Duration) {
        let room = limit.saturating_sub(self.held);
        let grew = seen.grown != std::mem::replace(&mut self.grown, seen.grown);
        let bursts = room / self.burst();
        if bursts < REOPEN_BURSTS {
            self.calm_since = None;
        }
        if self.held > limit.saturating_add(TOLERANCE) {
            return self.make_room(pages_in(self.held - limit).min(EXCESS_BATCH));
        }
        if seen.waiting > 0 && room < PAGE {
            return self.serve_waiting(now, seen.has_manager);
        }
        self.wait = None;
        if room > (seen.pages)().growable.saturating_add(MIN_BURST) {
            return (self.open(now), MAX_INTERVAL);
        }
        if bursts >= REOPEN_BURSTS {
            let calm = since(now, *self.calm_since.get_or_insert(now));
            let opened = self.opened.map(|opened| since(now, opened));
            if is_safe_to_open(bursts, calm, opened) {
                return (self.open(now), self.while_open(room));
            }
            return (Action::Nothing, MAX_INTERVAL);
        }
        // A guest that goes on growing need not find the gate shut first.
        if grew && room / PAGE < LOW_CREDIT && self.was_refused(now) {
            return self.make_room(RECLAIM_BATCH);
        }
        let again = if grew { self.interval() } else { MAX_INTERVAL };
        (Action::Nothing, again)
    }

    /// Accesses wait and there is no credit: the manager's turn, which has heard of it; then, or where it has had nothing
    /// just now, ours.
    fn serve_waiting(&mut self, now: Instant, has_manager: bool) -> (Action, Duration) {
        let wait = *self.wait.get_or_insert(Wait {
            since: now,
            grants: self.grants,
            is_served: false,
        });
        let is_refusal = self.owed == 0 && (self.grants > wait.grants || !has_manager);
        if is_refusal || since(now, wait.since) >= MANAGER_TIMEOUT {
            self.refused = Some(now);
        } else if self.owed > 0 || !self.was_refused(now) {
            return (Action::Nothing, MIN_INTERVAL);
        }
        self.wait = Some(Wait {
            is_served: true,
            ..wait
        });
        self.make_room(RECLAIM_BATCH)
    }

    /// `limit`, or what is guaranteed to the guest where accesses have waited for that long enough and in vain.
    fn with_overdue(&mut self, now: Instant, limit: u64, seen: &Observed<'_>) -> u64 {
        if let Some(wait) = &mut self.wait {
            let was_in_vain = std::mem::take(&mut wait.is_served) && seen.freed == 0;
            self.is_overdue |= was_in_vain && since(now, wait.since) >= GUARANTEE_TIMEOUT;
        }
        if !self.is_overdue {
            return limit;
        }
        match self.guaranteed((seen.pages)()).short() {
            0 => {
                self.is_overdue = false;
                limit
            }
            short => limit.max(self.held.saturating_add(short)),
        }
    }

    /// Whether the manager has nothing to give, as far as is known.
    fn was_refused(&self, now: Instant) -> bool {
        self.refused.is_some_and(|when| since(now, when) < REFUSAL_HOLDS)
    }

    fn make_room(&self, pages: u32) -> (Action, Duration) {
        (Action::MakeRoom(pages), self.interval())
    }

    fn open(&mut self, now: Instant) -> Action {
        if !std::mem::take(&mut self.is_gated) {
            return Action::Nothing;
        }
        self.opened = Some(now);
        self.wait = None;
        Action::OpenGate
    }

    fn tell(&mut self, now: Instant, limit: u64, waiting: u64) -> Option<LimitStatus> {
        let status = LimitStatus {
            limit_bytes: Some(limit),
            waiting,
            gated: self.is_gated,
        };
        self.told.tell(now, status)
    }

    /// Shortest time between two looks here: they must not cost the guest its CPU.
    fn interval(&self) -> Duration {
        MIN_INTERVAL.max(self.look * LOOK_PART)
    }

    /// Time until the next look at an open gate with so much `room`: the guest takes no more than half of it.
    fn while_open(&self, room: u64) -> Duration {
        time_for(self.speed, room / 2).clamp(self.interval(), MAX_INTERVAL)
    }

    /// Bytes that the guest could take until the next look.
    fn burst(&self) -> u64 {
        bytes_in(self.speed, self.interval()).max(MIN_BURST)
    }
}

/// Whether a gate can open behind which there is room for `bursts` bursts, for `calm` by now, and which was opened last
/// such a time ago.
fn is_safe_to_open(bursts: u64, calm: Duration, opened: Option<Duration>) -> bool {
    let rested = opened.is_none_or(|ago| ago > REOPEN_DELAY);
    bursts >= REOPEN_BURSTS && (calm > REOPEN_DELAY || (rested && bursts >= AMPLE_BURSTS))
}

fn since(now: Instant, then: Instant) -> Duration {
    now.saturating_duration_since(then)
}

fn pages_in(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE).unwrap_or(u32::MAX)
}

fn bytes_in(speed: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(speed) * time.as_nanos() / 1_000_000_000).unwrap_or(u64::MAX)
}

fn time_for(speed: u64, bytes: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / speed.max(1) as f64)
}

#[cfg(test)]
mod tests;
