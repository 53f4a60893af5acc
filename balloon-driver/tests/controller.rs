//! The controller against guests in miniature: willing, slow, hurt, out of memory, silent.

use std::time::Duration;

use balloon_driver::Values;
use balloon_driver::controller::{Aged, Controller, DriverPresence, Limits, Observation, Pain, Status, Step};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);
const MIB: u64 = 256;

/// A guest that follows its target at some speed, as far as its memory goes.
struct Guest {
    ballooned: u64,
    per_second: u64,
    most: u64,
    silent: Duration,
    alive: bool,
    statistics: Option<Values>,
    statistics_age: Duration,
}

impl Guest {
    fn new(per_second: u64, most: u64) -> Self {
        let (silent, statistics_age) = (Duration::ZERO, Duration::ZERO);
        Self {
            ballooned: 0,
            per_second,
            most,
            silent,
            alive: true,
            statistics: None,
            statistics_age,
        }
    }

    fn follow(&mut self, target: u64) {
        if !self.alive {
            self.silent += SECOND;
            self.statistics_age += SECOND;
            return;
        }
        let reachable = target.min(self.most);
        let step = self.ballooned.abs_diff(reachable).min(self.per_second);
        if self.ballooned < reachable {
            self.ballooned += step;
        } else if self.ballooned > target {
            self.ballooned -= step;
        }
    }

    fn seen(&self) -> Observation {
        Observation {
            elapsed: SECOND,
            driver: DriverPresence::Present,
            ballooned: Aged {
                value: self.ballooned,
                age: self.silent,
            },
            statistics: self.statistics.map(|value| Aged {
                value,
                age: self.statistics_age,
            }),
        }
    }

    /// Steps and follows for some seconds.
    fn run(&mut self, controller: &mut Controller, goal: u64, seconds: u32) -> Vec<Step> {
        (0..seconds)
            .map(|_| {
                let step = controller.step(goal, &self.seen());
                self.follow(step.target);
                step
            })
            .collect()
    }
}

fn available(bytes: u64) -> Option<Values> {
    let mut values = Values::default();
    values.available_memory = Some(bytes);
    Some(values)
}

#[test]
fn a_willing_guest_is_asked_faster_and_faster_and_settles() {
    let mut controller = Controller::new(Limits::default());
    let mut guest = Guest::new(u64::MAX, u64::MAX);
    let steps = guest.run(&mut controller, 400 * MIB, 12);
    assert_eq!(guest.ballooned, 400 * MIB);
    assert_eq!(steps.last().unwrap().status, Status::Settled);
    let increments: Vec<u64> = steps
        .windows(2)
        .map(|pair| pair[1].target - pair[0].target)
        .collect();
    assert!(
        increments[..4].windows(2).all(|pair| pair[1] == 2 * pair[0]),
        "{increments:?}"
    );
}

#[test]
fn a_slow_guest_is_not_buried_in_demands() {
    let limits = Limits::default();
    let mut controller = Controller::new(limits);
    let mut guest = Guest::new(limits.slowest, u64::MAX);
    for _ in 0..60 {
        let step = controller.step(1000 * MIB, &guest.seen());
        // Never more ahead than the last rate that was tried, twice the slowest, for two steps.
        assert!(
            step.target - guest.ballooned <= 4 * limits.slowest,
            "{step:?} at {}",
            guest.ballooned
        );
        guest.follow(step.target);
    }
    assert!(
        guest.ballooned >= 50 * limits.slowest,
        "and it works all the time: {}",
        guest.ballooned
    );
}

#[test]
fn inflation_that_makes_no_progress_stops_and_reports_the_size_reached() {
    let limits = Limits::default();
    let mut controller = Controller::new(limits);
    let mut guest = Guest::new(u64::MAX, 100 * MIB);
    let steps = guest.run(&mut controller, 300 * MIB, 20);
    assert_eq!(
        *steps.last().unwrap(),
        Step {
            target: 100 * MIB,
            status: Status::Stopped { reached: 100 * MIB }
        }
    );
    // A new goal is a new attempt, and so is time.
    guest.most = 200 * MIB;
    let steps = guest.run(&mut controller, 150 * MIB, 20);
    assert_eq!(
        *steps.last().unwrap(),
        Step {
            target: 150 * MIB,
            status: Status::Settled
        }
    );
    guest.run(&mut controller, 300 * MIB, 10);
    guest.most = 400 * MIB;
    guest.run(
        &mut controller,
        300 * MIB,
        limits.retry_after.as_secs() as u32 + 20,
    );
    assert_eq!(guest.ballooned, 300 * MIB);
}

#[test]
fn every_kind_of_pain_releases_everything_at_once() {
    type Change = fn(&mut Values);
    let pains: [(Pain, Change); 4] = [
        (Pain::OomKill, |values| values.oom_kills = Some(1)),
        (Pain::LowMemory, |values| values.available_memory = Some(1 << 20)),
        (Pain::MajorFaults, |values| values.major_faults = Some(10_000)),
        (Pain::SwapIn, |values| values.swap_in = Some(1 << 30)),
    ];
    for (pain, change) in pains {
        let limits = Limits::default();
        let mut controller = Controller::new(limits);
        let mut guest = Guest::new(u64::MAX, u64::MAX);
        guest.statistics = available(8 << 30);
        let values = guest.statistics.as_mut().unwrap();
        (values.oom_kills, values.major_faults, values.swap_in) = (Some(0), Some(10), Some(0));
        guest.run(&mut controller, 200 * MIB, 10);
        assert_eq!(guest.ballooned, 200 * MIB);
        change(guest.statistics.as_mut().unwrap());
        let step = controller.step(200 * MIB, &guest.seen());
        assert_eq!(
            step,
            Step {
                target: 0,
                status: Status::Relieving(pain)
            }
        );
        guest.follow(step.target);
        // It stays away for a while, then comes back to less than what hurt, slowly.
        guest.statistics.as_mut().unwrap().available_memory = Some(8 << 30);
        let rest = limits.recovery.as_secs() as u32 - 1;
        assert!(
            guest
                .run(&mut controller, 200 * MIB, rest)
                .iter()
                .all(|step| step.target == 0),
            "{pain:?}"
        );
        let steps = guest.run(&mut controller, 200 * MIB, 20);
        assert!(steps[0].target <= limits.slowest, "{:?}", steps[0]);
        assert_eq!(guest.ballooned, 150 * MIB, "{pain:?}");
        guest.run(&mut controller, 200 * MIB, limits.remember_pain.as_secs() as u32);
        assert_eq!(guest.ballooned, 200 * MIB, "pain is forgotten in the end");
    }
}

#[test]
fn inflation_leaves_the_floor_alone_when_the_guest_says_what_it_has() {
    let limits = Limits::default();
    let mut controller = Controller::new(limits);
    let mut guest = Guest::new(u64::MAX, u64::MAX);
    let memory = 200 << 20;
    for _ in 0..30 {
        guest.statistics = available(memory - guest.ballooned * 4096);
        let step = controller.step(400 * MIB, &guest.seen());
        assert!(!matches!(step.status, Status::Relieving(_)), "{step:?}");
        guest.follow(step.target);
    }
    assert_eq!(memory - guest.ballooned * 4096, limits.available_floor);
}

#[test]
fn the_same_statistics_do_not_hurt_twice_and_old_ones_show_nothing() {
    let mut controller = Controller::new(Limits::default());
    let mut guest = Guest::new(u64::MAX, u64::MAX);
    guest.statistics = available(8 << 30);
    guest.statistics.as_mut().unwrap().oom_kills = Some(3);
    let steps = guest.run(&mut controller, 50 * MIB, 8);
    assert_eq!(
        steps.last().unwrap().status,
        Status::Settled,
        "kills before the first look do not count"
    );
    guest.statistics_age = Duration::from_secs(6);
    let step = controller.step(100 * MIB, &guest.seen());
    assert_eq!(
        step,
        Step {
            target: 50 * MIB,
            status: Status::Blind
        }
    );
    let step = controller.step(10 * MIB, &guest.seen());
    assert_eq!(
        (step.target, step.status),
        (10 * MIB, Status::Deflating),
        "shrinking needs no statistics"
    );
}

#[test]
fn a_driver_that_says_nothing_is_unresponsive_until_it_speaks() {
    let limits = Limits::default();
    for statistics in [None, available(8 << 30)] {
        let mut controller = Controller::new(limits);
        let mut guest = Guest::new(u64::MAX, u64::MAX);
        guest.statistics = statistics;
        guest.run(&mut controller, 20 * MIB, 5);
        guest.alive = false;
        let steps = guest.run(&mut controller, 200 * MIB, 20);
        assert!(
            matches!(steps.last().unwrap().status, Status::Unresponsive { .. }),
            "{:?}",
            steps.last()
        );
        let frozen = steps.last().unwrap().target;
        assert!(
            frozen < 200 * MIB,
            "nothing is piled up on a silent driver: {frozen}"
        );
        guest.alive = true;
        (guest.silent, guest.statistics_age) = (Duration::ZERO, Duration::ZERO);
        guest.run(&mut controller, 200 * MIB, 20);
        assert_eq!(guest.ballooned, 200 * MIB);
    }
}

#[test]
fn without_a_driver_nothing_is_commanded() {
    let mut controller = Controller::new(Limits::default());
    let mut guest = Guest::new(u64::MAX, u64::MAX);
    guest.run(&mut controller, 100 * MIB, 10);
    let gone = Observation {
        driver: DriverPresence::Absent,
        ..guest.seen()
    };
    assert_eq!(
        controller.step(100 * MIB, &gone),
        Step {
            target: 0,
            status: Status::Absent
        }
    );
    guest.ballooned = 0;
    let step = controller.step(100 * MIB, &guest.seen());
    assert!(
        step.target <= Limits::default().slowest,
        "a fresh driver is met slowly: {step:?}"
    );
}

#[test]
fn goals_in_the_dead_band_change_nothing_and_zero_always_counts() {
    let limits = Limits::default();
    let mut controller = Controller::new(limits);
    let mut guest = Guest::new(u64::MAX, u64::MAX);
    guest.run(&mut controller, 100 * MIB, 10);
    for wobble in [1, limits.dead_band] {
        for goal in [100 * MIB + wobble, 100 * MIB - wobble] {
            assert_eq!(controller.step(goal, &guest.seen()).target, 100 * MIB);
        }
    }
    assert_eq!(
        controller
            .step(100 * MIB - limits.dead_band - 1, &guest.seen())
            .target,
        99 * MIB - 1
    );
    let mut controller = Controller::new(limits);
    let mut guest = Guest::new(u64::MAX, u64::MAX);
    guest.run(&mut controller, 100 * MIB, 10);
    guest.run(&mut controller, limits.dead_band, 5);
    assert_eq!(guest.ballooned, limits.dead_band);
    assert_eq!(
        controller.step(0, &guest.seen()),
        Step {
            target: 0,
            status: Status::Deflating
        }
    );
}

#[test]
fn inflation_stops_when_the_time_without_progress_is_over_and_not_before() {
    let mut controller = Controller::new(Limits::default());
    let mut guest = Guest::new(u64::MAX, 0);
    // The first step asks; three seconds later the guest has had its time.
    let steps = guest.run(&mut controller, 100 * MIB, 4);
    let status: Vec<Status> = steps.into_iter().map(|step| step.status).collect();
    let stopped = Status::Stopped { reached: 0 };
    assert_eq!(
        status,
        [Status::Inflating, Status::Inflating, Status::Inflating, stopped]
    );
}

proptest! {
    #[test]
    fn whatever_a_guest_claims_the_target_stays_between_zero_and_the_goal(
        claims in prop::collection::vec((0..u64::MAX, prop::option::of((0..u64::MAX, 0..u64::MAX)), 0..20u64), 1..80),
        goal in 0..u64::from(u32::MAX),
    ) {
        let mut controller = Controller::new(Limits::default());
        for (ballooned, statistics, age) in claims {
            let statistics = statistics.map(|(free, faults)| {
                let mut values = Values::default();
                (values.available_memory, values.major_faults, values.swap_in) = (Some(free), Some(faults), Some(free));
                Aged { value: values, age: Duration::from_secs(age) }
            });
            let ballooned = Aged { value: ballooned, age: Duration::from_secs(age) };
            let seen = Observation { elapsed: SECOND, driver: DriverPresence::Present, ballooned, statistics };
            prop_assert!(controller.step(goal, &seen).target <= goal);
        }
    }
}

#[test]
fn statistics_are_good_until_they_are_older_than_the_limit() {
    let limits = Limits::default();
    for (age, blind) in [
        (limits.stale_after, false),
        (limits.stale_after + Duration::from_nanos(1), true),
    ] {
        let mut guest = Guest::new(u64::MAX, u64::MAX);
        guest.statistics = available(1 << 40);
        guest.statistics_age = age;
        let step = Controller::new(limits).step(100 * MIB, &guest.seen());
        assert_eq!(step.status == Status::Blind, blind, "{step:?}");
    }
}

#[test]
fn the_limits_are_those_of_the_documentation() {
    let limits = Limits::default();
    let seconds = [
        limits.no_progress,
        limits.retry_after,
        limits.silence,
        limits.stale_after,
        limits.recovery,
        limits.remember_pain,
    ];
    assert_eq!(seconds.map(|time| time.as_secs()), [3, 60, 10, 5, 10, 120]);
    assert_eq!(
        (limits.slowest, limits.fastest, limits.dead_band),
        (1024, 65_536, 256)
    );
    assert_eq!(limits.available_floor, 32 << 20);
    assert_eq!(
        (limits.major_faults_per_second, limits.swap_in_per_second),
        (200, 8 << 20)
    );
}
