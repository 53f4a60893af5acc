//! The policy against guests that do what they are told, at the speed they are told it.

use allocator::{GuestId, Shares};

use super::*;
use crate::link::{Activity, BalloonReport, Report, Standing};
use crate::manager::member::Limits;

const SECOND: Duration = Duration::from_secs(1);

/// A guest that has touched all its memory once and goes on using `active` of it.
struct Guest {
    active: Pages,
    dead_balloon: bool,
}

/// A host with its guests, one second after the other.
struct Host {
    policy: Policy,
    members: Vec<Member>,
    guests: Vec<Guest>,
    seconds: u64,
}

impl Host {
    fn new(budget: Pages, guests: Vec<Guest>) -> Self {
        let limits = Limits {
            min: Pages::from_mib(64),
            max: Pages::from_mib(256),
            shares: Shares::NORMAL,
            group: None,
        };
        let members = (0..guests.len())
            .map(|id| Member::new(GuestId::new(id as u64), limits))
            .collect();
        let mut host = Self {
            policy: Policy::new(Settings::new(budget)),
            members,
            guests,
            seconds: 0,
        };
        for (member, guest) in host.members.iter_mut().zip(&host.guests) {
            let mut report = Report::default();
            report.pages.private = limits.max.get();
            report.balloon = Some(BalloonReport {
                unresponsive: guest.dead_balloon,
                ..BalloonReport::default()
            });
            member.held = limits.max;
            member.hear(report);
        }
        host
    }

    fn run(&mut self, seconds: u64) -> Round {
        let mut last = None;
        for _ in 0..seconds {
            self.seconds += 1;
            let round = self
                .policy
                .round(SECOND, Spent::default(), &[], &mut self.members)
                .unwrap();
            for ((member, guest), orders) in self.members.iter_mut().zip(&self.guests).zip(&round.orders) {
                obey(member, guest, orders, self.seconds);
            }
            last = Some(round);
        }
        last.unwrap()
    }

    fn private(&self, index: usize) -> f64 {
        self.members[index].private().mib()
    }
}

fn obey(member: &mut Member, guest: &Guest, orders: &Orders, seconds: u64) {
    let mut report = member.report.clone();
    let max = member.limits.max.get();
    if !guest.dead_balloon {
        report.pages.ballooned = orders.balloon_pages;
    }
    let cold = (max - report.pages.ballooned - report.pages.compressed - report.pages.swapped)
        .saturating_sub(guest.active.get());
    let compressed = orders.compress_pages.min(cold);
    report.pages.compressed += compressed;
    report.pages.swapped += orders.swap_pages.min(cold - compressed);
    let away = report.pages.ballooned + report.pages.compressed + report.pages.swapped;
    report.pages.private = max - away;
    if let Some(balloon) = &mut report.balloon {
        balloon.actual_pages = report.pages.ballooned;
    }
    let fraction = guest.active.of(Pages::new(report.pages.private)).min(1.0);
    report.activity = Activity {
        periods: seconds / 30,
        last: ((fraction * 100.0).round() as u32, 100),
        running: (0, 0),
    };
    // What was compressed takes half its size in the process.
    report.store_bytes = report.pages.compressed / 2 * 4096;
    member.held = Pages::new(report.pages.private + report.pages.compressed / 2);
    member.hear(report);
}

/// A budget that leaves 360 MiB to hand out once the free memory aimed for is set aside.
fn figure_7() -> Pages {
    let part = 0.06 * (1.0 + Thresholds::HYSTERESIS);
    Pages::from_mib(360).part(1.0 / (1.0 - part)) + Pages::new(2)
}

#[test]
fn the_idle_guest_pays_for_the_active_one() {
    let guest = |active| Guest {
        active: Pages::from_mib(active),
        dead_balloon: false,
    };
    let mut host = Host::new(figure_7(), vec![guest(0), guest(256)]);
    host.run(180);
    // The closed form's 104 and 256 are for the free memory aimed for; balloons rest as soon as the state is high, so
    // the idle guest may keep what lies between that and the soft threshold. The dead band is 1 % of a guest.
    let thresholds = Thresholds::published(figure_7());
    let slack = (thresholds.goal() - thresholds.of(State::Soft)).mib() + 2.56;
    let idle = host.private(0);
    assert!(
        (101.4..=104.0 + slack).contains(&idle),
        "idle guest holds {idle} MiB, slack {slack}"
    );
    assert!(
        (host.private(1) - 256.0).abs() <= 6.0,
        "active guest holds {} MiB",
        host.private(1)
    );
}

#[test]
fn without_tax_both_hold_the_same() {
    let guest = |active| Guest {
        active: Pages::from_mib(active),
        dead_balloon: false,
    };
    let mut host = Host::new(figure_7(), vec![guest(0), guest(256)]);
    let settings = Settings {
        tax: Tax::NONE,
        ..*host.policy.settings()
    };
    host.policy.set(settings);
    host.run(180);
    for index in 0..2 {
        assert!(
            (host.private(index) - 180.0).abs() <= 6.0,
            "guest {index} holds {} MiB",
            host.private(index)
        );
    }
}

#[test]
fn a_dead_balloon_is_compressed_and_swapped_instead() {
    let mut host = Host::new(
        figure_7(),
        vec![
            Guest {
                active: Pages::ZERO,
                dead_balloon: true,
            },
            Guest {
                active: Pages::from_mib(256),
                dead_balloon: false,
            },
        ],
    );
    let round = host.run(180);
    let pages = host.members[0].report.pages;
    assert_eq!(pages.ballooned, 0);
    assert!(pages.compressed + pages.swapped > 0, "{pages:?}");
    // Its compressed pages are memory it holds.
    let held = host.private(0) + host.members[0].store().mib();
    assert!(round.free > 0 && held >= 64.0, "{round:?}, held {held} MiB");
}

#[test]
fn growth_is_gated_before_the_budget_is_gone() {
    let mut host = Host::new(
        Pages::from_mib(512),
        vec![Guest {
            active: Pages::from_mib(256),
            dead_balloon: true,
        }],
    );
    host.members[0].held = Pages::from_mib(510);
    let round = host
        .policy
        .round(SECOND, Spent::default(), &[], &mut host.members)
        .unwrap();
    assert_eq!(round.state, State::Low);
    let limit = round.orders[0].limit_bytes;
    assert!(limit.is_some_and(|limit| limit <= 510 << 20), "{limit:?}");
}

#[test]
fn plenty_asks_nothing_of_anybody() {
    let guest = || Guest {
        active: Pages::ZERO,
        dead_balloon: false,
    };
    let mut host = Host::new(Pages::from_mib(4096), vec![guest(), guest()]);
    let round = host.run(60);
    assert_eq!(
        (
            round.state,
            round.orders[0].balloon_pages,
            round.orders[0].limit_bytes >= Some(256 << 20)
        ),
        (State::High, 0, true)
    );
    assert_eq!(host.private(0), 256.0);
}

#[test]
fn a_budget_below_the_minimums_is_refused_and_where_it_comes_to_that_everybody_has_its_minimum() {
    let guest = || Guest {
        active: Pages::ZERO,
        dead_balloon: false,
    };
    let mut host = Host::new(Pages::from_mib(100), vec![guest(), guest()]);
    let error = host
        .policy
        .fleet(Spent::default(), &[], &host.members)
        .unwrap_err();
    assert!(error.to_string().contains("min"), "{error}");
    let round = host.run(120);
    assert_eq!(round.state, State::Low);
    let minimum = host.members[0].limits.min;
    for index in 0..2 {
        assert_eq!(host.policy.plan.targets()[index].pages, minimum);
        // What is compressed takes memory too, and it is the guest's.
        let held = host.members[index].held.mib();
        assert!((64.0..68.0).contains(&held), "{held} MiB");
    }
}

/// Two guests in 300 MiB: one holds most of it, the other asks for memory that it is entitled to.
fn one_waits() -> Host {
    let guest = || Guest {
        active: Pages::from_mib(64),
        dead_balloon: true,
    };
    let mut host = Host::new(Pages::from_mib(300), vec![guest(), guest()]);
    for (index, held) in [(0, 200), (1, 60)] {
        host.members[index].held = Pages::from_mib(held);
        host.members[index].report.pages.private = Pages::from_mib(held).get();
    }
    host
}

fn limits(host: &mut Host, elapsed: Duration) -> (Round, Vec<u64>) {
    let round = host
        .policy
        .round(elapsed, Spent::default(), &[], &mut host.members)
        .unwrap();
    let limits = round
        .orders
        .iter()
        .map(|orders| orders.limit_bytes.unwrap() >> 20)
        .collect();
    (round, limits)
}

#[test]
fn limits_together_never_exceed_the_budget() {
    let mut host = one_waits();
    let (_, before) = limits(&mut host, SECOND);
    assert!(before.iter().sum::<u64>() <= 300 && before[0] > 200, "{before:?}");
    for (member, limit) in host.members.iter_mut().zip(&before) {
        member.stand(Standing {
            limit_bytes: Some(limit << 20),
            ..Standing::default()
        });
    }
    // The second waits for memory. The first may still grow to its old limit until it has heard of the new one.
    host.members[1].standing.waiting = 3;
    let (round, during) = limits(&mut host, SECOND / 50);
    assert!(
        during[0] < before[0] && during[1] >= before[1],
        "{before:?} {during:?}"
    );
    assert!(before[0] + during[1] <= 300, "{before:?} {during:?}");
    assert_eq!(round.next, Duration::ZERO);
    assert!(round.orders[1].owed_bytes > 0);
    host.members[0].standing.limit_bytes = Some(during[0] << 20);
    let (_, after) = limits(&mut host, SECOND / 50);
    assert!(
        after[1] > during[1] && after.iter().sum::<u64>() <= 300,
        "{during:?} {after:?}"
    );
}

#[test]
fn what_exceeds_the_budget_is_cut_from_those_above_their_target() {
    let mut host = one_waits();
    host.members[0].held = Pages::from_mib(250);
    let (round, limits) = limits(&mut host, SECOND);
    assert!(
        round.free < 0 && limits[0] < 250 && limits[1] >= 59,
        "{round:?} {limits:?}"
    );
    assert!(limits.iter().sum::<u64>() <= 300, "{limits:?}");
}

#[test]
fn no_squeeze_is_ordered_on_figures_from_before_the_last_one() {
    let guest = || Guest {
        active: Pages::ZERO,
        dead_balloon: true,
    };
    let mut host = Host::new(Pages::from_mib(400), vec![guest(), guest()]);
    for member in &mut host.members {
        let mut report = member.report.clone();
        report.activity = Activity {
            periods: 1,
            last: (0, 100),
            running: (0, 0),
        };
        member.hear(report);
    }
    let squeezed = |round: &Round| {
        round
            .orders
            .iter()
            .map(|orders| orders.compress_pages)
            .sum::<u64>()
    };
    let (first, _) = limits(&mut host, SECOND);
    assert!(squeezed(&first) > 0, "{first:?}");
    let (second, _) = limits(&mut host, SECOND);
    assert_eq!(squeezed(&second), 0);
}
