//! A year of a guest, its manager and the clock, by chance: what holds at every look, whatever happens.

use super::*;

/// Bytes of the guest's memory.
const SIZE: u64 = 1 << 30;
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Numbers by chance, the same for the same seed (SplitMix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (bits ^ bits >> 31) % end.max(1)
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }
}

/// What the manager said last, by which the limit is known without the controller.
#[derive(Clone, Copy)]
enum Word {
    Limit(Option<u64>, Instant),
    Gone,
    Expired(u64),
}

impl Word {
    /// The limit at `now` of a process that holds `held` bytes.
    fn limit(&mut self, now: Instant, held: Option<u64>) -> Option<u64> {
        let last = match *self {
            Self::Limit(limit, at) if now - at < Duration::from_secs(60) => return limit,
            Self::Expired(limit) => return Some(limit),
            Self::Limit(limit, _) => limit,
            Self::Gone => None,
        };
        let least = last.into_iter().chain(held).min()?;
        *self = Self::Expired(least);
        Some(least)
    }
}

struct World {
    model: Model,
    chance: Chance,
    word: Word,
    minimum: u64,
    is_gated: bool,
    credit: u64,
    /// Bytes a second that the guest wants.
    wants: u64,
    told: Option<(LimitStatus, Instant)>,
    /// What was told last was heard.
    is_heard: bool,
    /// Since when accesses wait without credit.
    starving_since: Option<Instant>,
    /// The next look is as early as was wanted, and the limit that it finds the same.
    is_undisturbed: bool,
    /// Looks between two things that happen, about.
    quiet: u64,
    is_overdue: bool,
    opened: u64,
    overdue: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let model = Model::new(SPEED);
        Self {
            word: Word::Limit(None, model.now),
            told: Some((LimitStatus::default(), model.now)),
            model,
            chance: Chance(seed),
            minimum: 0,
            is_gated: false,
            credit: 0,
            wants: 0,
            is_heard: false,
            starving_since: None,
            is_undisturbed: false,
            quiet: 10,
            is_overdue: false,
            opened: 0,
            overdue: 0,
        }
    }

    fn held(&self) -> u64 {
        self.model.held.unwrap_or(0)
    }

    /// Something happens that the controller has no say in.
    fn happen(&mut self) {
        let now = self.model.now;
        match self.chance.below(8) {
            0..3 => {
                let limit = self.chance.below(SIZE + SIZE / 4);
                let limit = (!self.chance.one_in(50)).then_some(limit);
                let owed = if self.chance.one_in(2) { 0 } else { 8 * MIB };
                self.model.controller.set_limit(now, limit, owed);
                self.word = Word::Limit(limit, now);
                self.is_undisturbed = false;
            }
            3 => {
                self.model.controller.lose_manager();
                self.model.has_manager = false;
                if matches!(self.word, Word::Limit(None, _)) {
                    self.word = Word::Gone;
                }
                self.is_undisturbed = false;
            }
            4 => {
                self.model.controller.tell_again();
                self.model.has_manager = true;
                self.is_heard = false;
            }
            5 => {
                self.minimum = self.chance.below(SIZE / 2 / PAGE) * PAGE;
                self.model.controller.set_minimum(self.minimum);
            }
            6 => self.wants = self.chance.below(3) * self.chance.below(SPEED / 2),
            _ => {
                // The guest frees memory, its balloon grows, pages are shared.
                let freed = self.chance.below(self.held() / 2 / PAGE) * PAGE;
                self.model.held = Some(self.held() - freed);
                self.model.pages.common = self.chance.below(64 * MIB / PAGE) * PAGE;
            }
        }
    }

    /// The guest grows for `time`, as far as the gate lets it.
    fn grow(&mut self, time: Duration) {
        let wanted = bytes_in(self.wants, time).min(SIZE - self.held()) / PAGE;
        let grows = if self.is_gated {
            wanted.min(self.credit)
        } else {
            wanted
        };
        if self.is_gated {
            self.credit -= grows;
            self.model.grown += grows;
        }
        self.model.waiting = u64::from(wanted > grows);
        self.model.held = Some(self.held() + grows * PAGE);
    }

    /// One look, judged by what is known without the controller; returns when the next one is due.
    fn look(&mut self) -> Duration {
        let (now, held, was_gated) = (self.model.now, self.held(), self.is_gated);
        self.model.pages.growable = SIZE - held;
        let Some(limit) = self.word.limit(now, self.model.held) else {
            let step = self.model.look();
            assert_eq!((step.credit, step.tell, step.again), (None, None, MAX_INTERVAL));
            self.is_gated = false;
            self.starving_since = None;
            return step.again;
        };
        if self.is_undisturbed && !was_gated && !self.is_overdue {
            assert!(
                held <= limit,
                "a gate that was open let {held} bytes pass a limit of {limit}"
            );
        }
        let step = self.model.look();
        let has = held + self.model.pages.common;
        let short = self.minimum.saturating_sub(has);
        let limit = self.effective(limit, short, step);
        let room = limit.saturating_sub(held);
        assert_eq!(
            step.credit,
            was_gated.then(|| pages_in(room)),
            "credit is the room there is"
        );
        self.judge_gate(step, was_gated, room);
        self.judge_room_that_is_made(step, limit, room);
        self.judge_what_is_told(step, limit, was_gated);
        self.credit = step.credit.map_or(0, u64::from);
        self.carry_out(step)
    }

    /// The limit that holds: the manager's, or what is guaranteed where that is overdue.
    fn effective(&mut self, limit: u64, short: u64, step: Step) -> u64 {
        let guaranteed = self.held() + short;
        if !self.is_overdue && guaranteed > limit && short > 0 && step.credit == Some(pages_in(short)) {
            let waited = self.starving_since.map(|since| self.model.now - since);
            assert!(waited >= Some(GUARANTEE_TIMEOUT), "taken after {waited:?}");
            self.is_overdue = true;
            self.overdue += 1;
        }
        self.is_overdue &= short > 0;
        if self.is_overdue {
            limit.max(guaranteed)
        } else {
            limit
        }
    }

    fn judge_gate(&self, step: Step, was_gated: bool, room: u64) {
        let growable = self.model.pages.growable;
        match step.action {
            Action::CloseGate => assert!(!was_gated && room <= BURST && room <= growable),
            Action::OpenGate => assert!(was_gated && (room >= REOPEN_BURSTS * BURST || room > growable)),
            _ if !was_gated => assert!(
                room > BURST || room > growable,
                "{room} bytes of room are too few"
            ),
            _ => {}
        }
        // Never twice in a row at once, where nothing is gained by it.
        let at_once = step.action == Action::CloseGate;
        assert_eq!(step.again.is_zero(), at_once, "{step:?}");
        assert!(
            at_once || (MIN_INTERVAL..=MAX_INTERVAL).contains(&step.again),
            "{step:?}"
        );
    }

    fn judge_room_that_is_made(&mut self, step: Step, limit: u64, room: u64) {
        let is_above = self.held() > limit + TOLERANCE;
        let starves = !is_above && self.is_gated && self.model.waiting > 0 && room < PAGE;
        if starves {
            self.starving_since.get_or_insert(self.model.now);
        } else if !is_above {
            self.starving_since = None;
        }
        match step.action {
            Action::MakeRoom(pages) => {
                assert!(self.is_gated && pages > 0);
                let ahead = room < LOW_CREDIT * PAGE;
                assert!(is_above || starves || ahead, "{step:?} with {room} bytes of room");
            }
            _ => {
                assert!(!is_above || !self.is_gated, "{step:?} above the limit");
                let patience = |since| self.model.now - since < MANAGER_TIMEOUT;
                assert!(
                    !starves || self.starving_since.is_some_and(patience),
                    "accesses are left to a manager that does not come"
                );
            }
        }
    }

    fn judge_what_is_told(&mut self, step: Step, limit: u64, was_gated: bool) {
        let now = self.model.now;
        let is_due = self.told.is_none_or(|(_, when)| now - when >= ms(25));
        if let Some(status) = step.tell {
            assert!(is_due, "told too often");
            assert_eq!((status.limit_bytes, status.gated), (Some(limit), was_gated));
            assert_eq!(status.waiting, if was_gated { self.model.waiting } else { 0 });
            self.told = Some((status, now));
            self.is_heard = !self.chance.one_in(20);
            if !self.is_heard {
                self.model.controller.tell_again();
            }
        } else if is_due && step.action != Action::CloseGate {
            assert!(self.is_heard, "what was not heard is not told again");
            let known = self
                .told
                .map(|(status, _)| (status.limit_bytes, status.gated, status.waiting));
            assert_eq!(
                known,
                Some((Some(limit), was_gated, 0)),
                "what the manager knows is stale"
            );
            assert!(
                !was_gated || self.model.waiting == 0,
                "nothing is said of accesses that wait"
            );
        }
    }

    fn carry_out(&mut self, step: Step) -> Duration {
        match step.action {
            Action::Nothing => {}
            Action::CloseGate => self.is_gated = true,
            Action::OpenGate => {
                self.is_gated = false;
                self.opened += 1;
            }
            Action::MakeRoom(pages) => {
                let spare = self.model.controller.spare(self.model.pages).min(self.held());
                let most = u64::from(pages).min(spare / PAGE);
                let freed = if self.chance.one_in(3) {
                    0
                } else {
                    self.chance.below(most + 1)
                };
                self.model.held = Some(self.held() - freed * PAGE);
                self.model.freed = freed as u32;
                if freed > 0 {
                    return Duration::ZERO;
                }
            }
        }
        step.again
    }

    /// Lets the guest run until the next look: mostly when that is due, sometimes before, sometimes much later.
    fn pass(&mut self, again: Duration) {
        self.is_undisturbed = !self.is_gated;
        let time = match self.chance.below(200) {
            0 => {
                self.quiet = if self.chance.one_in(2) { 10 } else { 1000 };
                HOUR.mul_f64(self.chance.below(1000) as f64 / 200.0)
            }
            1..20 => again.mul_f64(self.chance.below(1000) as f64 / 1000.0),
            _ => again,
        };
        self.is_undisturbed &= time <= again;
        self.grow(time);
        self.model.now += time;
        if self.chance.one_in(self.quiet) {
            self.happen();
        }
    }
}

#[test]
fn whatever_happens_in_a_year_the_limit_holds_and_the_manager_knows() {
    for seed in 1..=3 {
        let mut world = World::new(seed);
        let start = world.model.now;
        let mut looks = 0_u64;
        while world.model.now - start < YEAR {
            let again = world.look();
            world.pass(again);
            looks += 1;
        }
        let seen = (world.opened, world.overdue);
        assert!(
            looks > 100_000 && seen.0 > 100 && seen.1 > 0,
            "seed {seed}: {looks} looks, {seen:?}"
        );
    }
}
