//! The controller under a model clock: what a process holds and what its guest waits for are numbers here.

mod year;

use super::*;

const MIB: u64 = 1 << 20;
/// Bytes a second; what a guest takes in 5 ms is [`BURST`].
const SPEED: u64 = 1000 * MIB;
const BURST: u64 = 5 * MIB;

/// One process as its controller sees it. Its guest is as large as it wants unless a test says otherwise.
struct Model {
    controller: LimitController,
    now: Instant,
    held: Option<u64>,
    grown: u64,
    waiting: u64,
    has_manager: bool,
    freed: u32,
    look: Duration,
    pages: GuestPages,
}

impl Model {
    fn new(speed: u64) -> Self {
        let now = Instant::now();
        Self {
            controller: LimitController::new(now, 0, speed),
            now,
            held: Some(0),
            grown: 0,
            waiting: 0,
            has_manager: true,
            freed: 0,
            look: Duration::ZERO,
            pages: GuestPages {
                own: u64::MAX,
                common: 0,
                growable: 1 << 40,
            },
        }
    }

    /// A process behind a closed gate with `room` bytes left, of 100 MiB.
    fn gated(room: u64) -> Self {
        let mut model = Self::new(SPEED);
        model.set_limit(100 * MIB);
        model.held = Some(100 * MIB);
        assert_eq!(model.look().action, Action::CloseGate);
        model.leave_room(room);
        model
    }

    fn set_limit(&mut self, limit: u64) {
        self.controller.set_limit(self.now, Some(limit), 0);
    }

    fn leave_room(&mut self, room: u64) {
        self.held = Some(100 * MIB - room);
    }

    fn look(&mut self) -> Step {
        let pages = self.pages;
        let seen = Observed {
            held: self.held,
            grown: self.grown,
            waiting: self.waiting,
            has_manager: self.has_manager,
            freed: std::mem::take(&mut self.freed),
            look: self.look,
            pages: &|| pages,
        };
        self.controller.step(self.now, &seen)
    }

    /// Looks again and again for `time`, as often as the controller wants to, until `wanted` is to be done. When that was.
    fn await_action(&mut self, wanted: Action, time: Duration) -> Option<Duration> {
        let start = self.now;
        while self.now - start <= time {
            let step = self.look();
            if step.action == wanted {
                return Some(self.now - start);
            }
            assert!(!step.again.is_zero(), "{step:?}");
            self.now += step.again;
        }
        None
    }
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn the_gate_closes_before_a_burst_could_pass_the_limit() {
    for (speed, limit, look) in [
        (MIB, 64 * MIB, ms(0)),
        (SPEED, 8 * MIB, ms(0)),
        (SPEED, 64 << 30, ms(0)),
        (SPEED, 64 << 30, ms(3)),
        (64 << 30, 64 * MIB, ms(0)),
        (64 << 30, 64 << 30, ms(20)),
    ] {
        let mut model = Model::new(speed);
        model.look = look;
        let held = loop {
            model.set_limit(limit);
            let step = model.look();
            let held = model.held.unwrap();
            if step.action == Action::CloseGate {
                break held;
            }
            assert_eq!((step.action, step.credit), (Action::Nothing, None));
            assert!(
                step.again >= (look * LOOK_PART).clamp(MIN_INTERVAL, MAX_INTERVAL),
                "{step:?}"
            );
            model.now += step.again;
            let held = held + bytes_in(speed, step.again);
            assert!(held <= limit, "{held} of {limit} at {speed} a second");
            model.held = Some(held);
        };
        // From now on as much may grow as there is room for, and no more.
        assert_eq!(model.look().credit, Some(pages_in(limit - held)));
    }
}

#[test]
fn what_a_guest_could_never_take_needs_no_gate() {
    let mut model = Model::new(SPEED);
    model.set_limit(10 * MIB);
    model.held = Some(8 * MIB);
    model.pages.growable = 2 * MIB - 1;
    assert_eq!(model.look().action, Action::Nothing);
    model.pages.growable = 2 * MIB;
    assert_eq!(model.look().action, Action::CloseGate);
}

#[test]
fn the_gate_opens_only_after_a_calm_time() {
    let calm = REOPEN_BURSTS * BURST;
    let mut model = Model::gated(calm);
    let opened = model.await_action(Action::OpenGate, HOUR).unwrap();
    assert!(
        opened > REOPEN_DELAY && opened <= REOPEN_DELAY + 2 * MAX_INTERVAL,
        "{opened:?}"
    );

    // Less room for a moment, and the time counts anew.
    let mut model = Model::gated(calm);
    assert_eq!(model.await_action(Action::OpenGate, REOPEN_DELAY), None);
    for (room, waiting) in [(calm - 1, 0), (0, 1)] {
        (model.waiting, model.now) = (waiting, model.now + REOPEN_DELAY / 2);
        model.leave_room(room);
        model.look();
        model.waiting = 0;
        model.leave_room(calm);
        assert_eq!(model.await_action(Action::OpenGate, REOPEN_DELAY), None);
    }

    let mut model = Model::gated(calm - 1);
    assert_eq!(model.await_action(Action::OpenGate, HOUR), None);
}

#[test]
fn ample_room_opens_the_gate_at_once_but_not_twice_in_a_row() {
    let ample = AMPLE_BURSTS * BURST;
    let mut model = Model::gated(ample);
    assert_eq!(model.look().action, Action::OpenGate);
    let close_and_leave = |model: &mut Model, room| {
        model.leave_room(0);
        assert_eq!(model.look().action, Action::CloseGate);
        model.leave_room(room);
    };
    close_and_leave(&mut model, ample);
    assert_eq!(model.look().action, Action::Nothing, "it was open just before");
    model.now += REOPEN_DELAY + ms(1);
    assert_eq!(model.look().action, Action::OpenGate);
    model.now += REOPEN_DELAY + ms(1);
    close_and_leave(&mut model, ample - 1);
    assert_eq!(model.look().action, Action::Nothing, "not ample");
    model.leave_room(ample);
    assert_eq!(model.look().action, Action::OpenGate);
}

#[test]
fn a_gate_that_has_just_opened_is_looked_after_like_any_open_one() {
    let room = AMPLE_BURSTS * BURST;
    let mut model = Model::gated(room);
    let opened = model.look();
    assert_eq!((opened.action, opened.again), (Action::OpenGate, ms(30)));
    assert_eq!(model.look().again, opened.again);
}

#[test]
fn a_gate_that_holds_nothing_back_opens_at_once_every_time() {
    let mut model = Model::gated(10 * MIB);
    model.pages.growable = 9 * MIB - 1;
    for _ in 0..3 {
        assert_eq!(model.look().action, Action::OpenGate);
        model.leave_room(0);
        assert_eq!(model.look().action, Action::CloseGate);
        model.leave_room(10 * MIB);
    }
    model.pages.growable = 9 * MIB;
    assert_eq!(model.look().action, Action::Nothing);
}

#[test]
fn accesses_that_wait_are_the_managers_first_and_then_the_guests_own() {
    let room = Action::MakeRoom(RECLAIM_BATCH);
    let waiting = |owed| {
        let mut model = Model::gated(0);
        model.controller.set_limit(model.now, Some(100 * MIB), owed);
        model.waiting = 1;
        model
    };
    // Owed or not: the manager has its time, looked after often.
    for owed in [0, MIB] {
        let mut model = waiting(owed);
        assert_eq!(model.look().again, MIN_INTERVAL);
        assert_eq!(model.await_action(room, HOUR), Some(MANAGER_TIMEOUT));
    }
    // An answer that has nothing ends it, one that means to give does not.
    for (owed, served) in [(0, true), (MIB, false)] {
        let mut model = waiting(0);
        assert_eq!(model.look().action, Action::Nothing);
        model.controller.set_limit(model.now, Some(100 * MIB), owed);
        assert_eq!(model.look().action == room, served);
    }
    // So does that there is none.
    let mut model = waiting(0);
    model.has_manager = false;
    assert_eq!(model.look().action, room);
}

#[test]
fn a_manager_that_had_nothing_is_not_asked_again_for_a_second() {
    let mut model = Model::gated(0);
    model.waiting = 1;
    assert!(
        model
            .await_action(Action::MakeRoom(RECLAIM_BATCH), HOUR)
            .is_some()
    );
    let served = |model: &mut Model, after| {
        // The guest has got what it waited for, and waits again.
        (model.waiting, model.freed) = (0, 1);
        model.leave_room(PAGE);
        model.look();
        model.now += after;
        model.waiting = 1;
        model.leave_room(0);
        model.look().action == Action::MakeRoom(RECLAIM_BATCH)
    };
    assert!(served(&mut model, REFUSAL_HOLDS - ms(1)));
    assert!(!served(&mut model, ms(1)));
    // A limit that was lifted in between makes it a new time that accesses wait.
    assert_eq!(model.look().action, Action::Nothing);
    model.controller.set_limit(model.now, None, 0);
    assert_eq!(model.look().action, Action::OpenGate);
    model.now += HOUR;
    model.set_limit(100 * MIB);
    assert_eq!(model.look().action, Action::CloseGate);
    assert_eq!(model.look().action, Action::Nothing);
    // One that means to give is waited for all the same.
    model.await_action(Action::MakeRoom(RECLAIM_BATCH), HOUR);
    model.controller.set_limit(model.now, Some(100 * MIB), MIB);
    assert!(!served(&mut model, ms(1)));
}

#[test]
fn room_is_made_ahead_of_need_for_a_guest_that_grows_where_the_manager_has_nothing() {
    let low = (LOW_CREDIT - 1) * PAGE;
    // (the manager had nothing, pages grown since the last look, room)
    for (was_refused, grown, room, ahead) in [
        (true, 1, low, true),
        (false, 1, low, false),
        (true, 0, low, false),
        (true, 1, LOW_CREDIT * PAGE, false),
    ] {
        let mut model = Model::gated(room);
        model.controller.refused = was_refused.then_some(model.now);
        model.grown = grown;
        let step = model.look();
        assert_eq!(step.action == Action::MakeRoom(RECLAIM_BATCH), ahead, "{step:?}");
        // A guest that does not grow is left alone.
        let again = if grown > 0 { MIN_INTERVAL } else { MAX_INTERVAL };
        assert_eq!(step.again, again);
    }
}

#[test]
fn a_guaranteed_minimum_that_does_not_come_is_taken_after_ten_seconds() {
    let missing = |freed| {
        let mut model = Model::gated(0);
        model.controller.set_minimum(104 * MIB);
        model.waiting = 1;
        let start = model.now;
        loop {
            let step = model.look();
            if step.credit != Some(0) || model.now - start > HOUR / 60 {
                return (model, start, step);
            }
            model.freed = if step.action == Action::Nothing { 0 } else { freed };
            model.now += step.again;
        }
    };
    let (mut model, start, step) = missing(0);
    assert!((model.now - start).abs_diff(GUARANTEE_TIMEOUT) < ms(20));
    assert_eq!(
        step.credit,
        Some(pages_in(4 * MIB)),
        "what is missing, and no more"
    );
    assert_eq!(
        step.tell.unwrap().limit_bytes,
        Some(104 * MIB),
        "the manager hears of it"
    );
    // Until it has all of it; then its limit is the manager's again.
    model.held = Some(103 * MIB);
    assert_eq!(model.look().credit, Some(pages_in(MIB)));
    model.held = Some(104 * MIB);
    assert_eq!(model.look().credit, Some(0));
    model.held = Some(102 * MIB);
    assert_eq!(model.look().credit, Some(0));

    // Nothing is taken as long as room can be made.
    let (.., step) = missing(1);
    assert_eq!(step.credit, Some(0));
}

#[test]
fn a_process_above_its_limit_comes_down_in_large_steps() {
    let mut model = Model::gated(0);
    for (excess, action) in [
        (TOLERANCE, Action::Nothing),
        (TOLERANCE + PAGE, Action::MakeRoom(257)),
        (64 * MIB, Action::MakeRoom(EXCESS_BATCH)),
    ] {
        model.held = Some(100 * MIB + excess);
        let step = model.look();
        assert_eq!((step.action, step.credit), (action, Some(0)));
    }
    // A look that costs much is taken more seldom.
    model.look = ms(2);
    assert_eq!(model.look().again, ms(2) * LOOK_PART);
    model.look = HOUR;
    assert_eq!(model.look().again, MAX_INTERVAL);
}

#[test]
fn without_a_manager_the_limit_is_what_is_held_after_a_minute() {
    let mut model = Model::gated(50 * MIB);
    // What it meant to give goes with it.
    model.controller.set_limit(model.now, Some(100 * MIB), MIB);
    model.controller.lose_manager();
    model.has_manager = false;
    model.now += lease::TERM - ms(25);
    assert_eq!(model.look().credit, Some(pages_in(50 * MIB)));
    model.now += ms(25);
    model.leave_room(40 * MIB);
    let step = model.look();
    assert_eq!(step.credit, Some(0));
    assert_eq!(step.tell.unwrap().limit_bytes, Some(60 * MIB));
    // What it gives up it may take again, and nothing beyond that, for ever.
    model.leave_room(50 * MIB);
    model.now += HOUR * 10_000;
    assert_eq!(model.look().credit, Some(pages_in(10 * MIB)));
    // Its accesses are served at once, by itself.
    model.waiting = 1;
    model.leave_room(40 * MIB);
    assert_eq!(model.look().action, Action::MakeRoom(RECLAIM_BATCH));
    // The next manager's limit holds.
    model.set_limit(80 * MIB);
    assert_eq!(model.look().credit, Some(pages_in(20 * MIB)));
}

#[test]
fn growth_is_free_until_the_first_limit_and_gated_where_none_comes() {
    let mut model = Model::new(SPEED);
    let free = Step {
        credit: None,
        tell: None,
        action: Action::Nothing,
        again: MAX_INTERVAL,
    };
    model.held = Some(50 * MIB);
    assert_eq!(model.look(), free);
    // A manager that lifts the limit opens the gate.
    let mut lifted = Model::gated(0);
    assert!(lifted.controller.set_limit(lifted.now, None, 0));
    assert_eq!(lifted.look().action, Action::OpenGate);
    // One that goes before it has set any leaves what is held.
    model.controller.lose_manager();
    assert_eq!(model.look().action, Action::CloseGate);
    assert_eq!(model.look().credit, Some(0));
}

#[test]
fn a_process_that_cannot_be_measured_may_not_grow() {
    let mut model = Model::gated(50 * MIB);
    model.held = None;
    assert_eq!(model.look().credit, Some(0));
}

#[test]
fn only_another_limit_wakes_the_thread() {
    let mut model = Model::new(SPEED);
    let mut set = |limit, owed| model.controller.set_limit(model.now, limit, owed);
    assert!(!set(None, 0), "there was none");
    assert!(set(Some(MIB), 0));
    assert!(!set(Some(MIB), 7));
    assert!(set(Some(2 * MIB), 7));
}

#[test]
fn the_manager_hears_what_changes_soon_and_nothing_twice() {
    let mut model = Model::gated(0);
    let interval = ms(25);
    let mut tell = |change: &dyn Fn(&mut Model), after| {
        change(&mut model);
        model.now += after;
        model
            .look()
            .tell
            .map(|status| (status.limit_bytes.unwrap() / MIB, status.gated, status.waiting))
    };
    let nothing = |_: &mut Model| {};
    assert_eq!(tell(&nothing, interval - ms(1)), None, "too soon");
    assert_eq!(tell(&nothing, ms(1)), Some((100, true, 0)));
    assert_eq!(tell(&nothing, HOUR), None, "it is known");
    // Who waits is said again and again, and once when that is over.
    assert_eq!(tell(&|model| model.waiting = 3, ms(0)), Some((100, true, 3)));
    assert_eq!(tell(&nothing, interval), Some((100, true, 3)));
    assert_eq!(tell(&|model| model.waiting = 0, interval), Some((100, true, 0)));
    assert_eq!(tell(&nothing, interval), None);
    assert_eq!(
        tell(&|model| model.set_limit(101 * MIB), ms(0)),
        Some((101, true, 0))
    );
    // A new manager, or one that did not read.
    assert_eq!(
        tell(&|model| model.controller.tell_again(), interval),
        Some((101, true, 0))
    );
    assert_eq!(tell(&nothing, interval), None);
    // The look that opens the gate still finds it closed.
    assert_eq!(tell(&|model| model.pages.growable = 0, interval), None);
    assert_eq!(tell(&nothing, interval), None);
    assert_eq!(
        tell(&|model| model.set_limit(200 * MIB), interval),
        Some((200, true, 0))
    );
    assert_eq!(tell(&nothing, interval), Some((200, false, 0)));
}

#[test]
fn the_largest_numbers_are_like_any_other() {
    let mut model = Model::gated(0);
    model.controller.set_minimum(u64::MAX);
    model.controller.is_overdue = true;
    assert_eq!(model.look().credit, Some(pages_in(u64::MAX - 100 * MIB)));
    let mut model = Model::gated(0);
    model.held = Some(u64::MAX);
    model.set_limit(u64::MAX);
    assert_eq!(model.look().credit, Some(0));
    let mut model = Model::new(u64::MAX);
    for (limit, action) in [(u64::MAX, Action::Nothing), (u64::MAX / 300, Action::CloseGate)] {
        // The guest could take a 200th of it all in 5 ms.
        model.set_limit(limit);
        model.pages.growable = u64::MAX;
        assert_eq!(model.look().action, action);
    }
}
