//! Who may hold how much.

use super::model::*;
use super::*;

#[test]
fn growth_is_gated_before_the_budget_is_gone() {
    let mut host = ModelHost::new(
        Pages::from_mib(512),
        vec![ModelGuest {
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
    let limit = told(&round, 0).limit_bytes;
    assert!(limit.is_some_and(|limit| limit <= 510 << 20), "{limit:?}");
}

#[test]
fn limits_together_never_exceed_the_budget() {
    let mut host = one_waits();
    let (_, before) = limits(&mut host, SECOND);
    assert!(before.iter().sum::<u64>() <= 300 && before[0] > 200, "{before:?}");
    for (member, limit) in host.members.iter_mut().zip(&before) {
        member.on_limit_status(LimitStatus {
            limit_bytes: Some(limit << 20),
            ..LimitStatus::default()
        });
    }
    // The second has grown up to its limit and waits for memory. The first may still grow to its old limit until it has
    // heard of the new one.
    host.members[1].held = Pages::from_mib(before[1]);
    host.members[1].standing.waiting = 3;
    let (round, during) = limits(&mut host, SECOND / 50);
    assert!(
        during[0] < before[0] && during[1] >= before[1],
        "{before:?} {during:?}"
    );
    assert!(before[0] + during[1] <= 300, "{before:?} {during:?}");
    assert_eq!(round.next, Duration::ZERO);
    assert!(told(&round, 1).owed_bytes > 0);
    host.members[0].on_limit_status(LimitStatus {
        limit_bytes: Some(during[0] << 20),
        ..LimitStatus::default()
    });
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
fn a_margin_of_the_budget_is_handed_out_to_no_guest() {
    let guest = || ModelGuest {
        active: Pages::from_mib(256),
        dead_balloon: true,
    };
    let mut host = ModelHost::new(Pages::from_mib(1000), (0..4).map(|_| guest()).collect());
    let spent = Spent {
        pools: Pages::from_mib(30),
        manager: Pages::from_mib(20),
    };
    for held in [100, 200, 230, 237] {
        for member in &mut host.members {
            member.held = Pages::from_mib(held);
            member.standing.waiting = 1;
        }
        let round = host.policy.round(SECOND, spent, &[], &mut host.members).unwrap();
        let limits: u64 = round
            .orders
            .values()
            .map(|orders| orders.limit_bytes.unwrap())
            .sum();
        assert!(limits <= (945 << 20), "held {held}: {}", limits >> 20);
        assert!(in_force(&host.members) <= Pages::from_mib(948), "{held}");
    }
}

#[test]
fn in_the_low_state_a_guest_above_its_target_is_handed_out_nothing() {
    let mut host = ModelHost::new(
        Pages::from_mib(512),
        [0, 256]
            .map(|active| ModelGuest {
                active: Pages::from_mib(active),
                dead_balloon: true,
            })
            .into(),
    );
    for (member, touched) in host.members.iter_mut().zip([0, 100]) {
        let mut report = member.report.clone();
        report.activity = Activity {
            periods: 1,
            last: (touched, 100),
            running: (0, 0),
        };
        report.pages.private = Pages::from_mib(254).get();
        member.held = Pages::from_mib(254);
        member.on_report(report);
        member.standing.waiting = 1;
    }
    // 4 MiB are free, 1.4 of them besides the margin: low, and some are left to hand out.
    let round = host.round(SECOND);
    assert_eq!(round.state, State::Low);
    let limits = [0, 1].map(|guest| told(&round, guest).limit_bytes.unwrap());
    assert_eq!(limits[0], 254 << 20, "the idle one is above its target");
    assert!(limits[1] > 254 << 20, "{limits:?}");
}

#[test]
fn in_the_low_state_guests_that_all_stand_still_above_their_targets_are_handed_out_what_is_free() {
    let guest = || ModelGuest {
        active: Pages::from_mib(64),
        dead_balloon: true,
    };
    let mut host = ModelHost::new(Pages::from_mib(512), vec![guest(), guest()]);
    for member in &mut host.members {
        // Only the scan still finds something.
        let mut report = member.report.clone();
        report.pages.private = Pages::from_mib(254).get();
        member.held = Pages::from_mib(254);
        member.on_report(report);
    }
    let step = |host: &mut ModelHost| {
        for member in &mut host.members {
            member.on_report(member.report.clone());
            let limit = member.sent_limit().map_or(254 << 20, |limit| limit.get() * 4096);
            member.on_limit_status(LimitStatus {
                limit_bytes: Some(limit),
                gated: true,
                waiting: 2,
            });
        }
        let round = host.round(SECOND);
        assert_eq!(round.state, State::Low);
        [0, 1].map(|guest| told(&round, guest).limit_bytes.unwrap())
    };
    for _ in 0..4 {
        assert_eq!(
            step(&mut host),
            [254 << 20; 2],
            "others may yet give something up"
        );
    }
    let limits = step(&mut host);
    assert!(limits.iter().all(|&limit| limit > 254 << 20), "{limits:?}");
    let most = Pages::from_mib(512).less(host.policy.margin());
    assert!(limits.iter().sum::<u64>() <= most.get() * 4096, "{limits:?}");
}

#[test]
fn a_process_that_ignores_its_limit_is_given_no_more_and_its_neighbour_keeps_its_minimum() {
    let mut host = one_waits();
    for (index, held) in [(0, 100), (1, 20)] {
        host.members[index].held = Pages::from_mib(held);
        host.members[index].report.pages.private = Pages::from_mib(held).get();
    }
    let (_, first) = limits(&mut host, SECOND);
    // Whatever it says, it grows far beyond what it was given.
    let mut last = first.clone();
    for held in (first[0] + 20..=280).step_by(20) {
        host.members[0].held = Pages::from_mib(held);
        host.members[0].report.pages.private = Pages::from_mib(held).get();
        host.members[0].on_limit_status(LimitStatus {
            limit_bytes: Some(1 << 40),
            gated: true,
            waiting: 9,
        });
        (_, last) = limits(&mut host, SECOND);
        assert!(last[0] <= first[0], "held {held}: {first:?} {last:?}");
        assert!(last[1] >= 64, "its neighbour's minimum: {last:?}");
    }
    let held = host.members[0].held;
    assert!(held > Pages::from_mib(260), "{held}");
    assert_eq!(
        host.members[0].in_force(),
        held,
        "what it holds is gone all the same"
    );
    assert!(last[1] < 80, "more than its minimum there is not: {last:?}");
}

#[test]
fn nothing_is_said_of_a_guest_beyond_what_it_holds_and_may_hold() {
    let limits = Limits {
        min: Pages::from_mib(64),
        max: Pages::from_mib(1024),
        shares: Shares::NORMAL,
        group: None,
    };
    let mut members = [Member::new(GuestId::new(9), limits)];
    let mut policy = Policy::new(Settings::new(Pages::from_mib(2048)));
    let mut report = Report::default();
    report.pages.private = limits.max.get();
    for held in [0, 5, 5, 90] {
        members[0].held = Pages::from_mib(held);
        report.activity.running = (0, 100);
        members[0].on_report(report.clone());
        let round = policy.round(SECOND, Spent::default(), &[], &mut members).unwrap();
        let member = &members[0];
        let most = member.held + Pages::new(told(&round, 9).limit_bytes.unwrap() / 4096);
        assert!(Pages::new(member.pages().private) <= member.held, "granted");
        assert_eq!(
            member.estimate.active,
            member.private(),
            "unknown counts as active"
        );
        assert!(member.estimate.active <= most);
    }
}

#[test]
fn pools_that_grow_as_fast_as_they_may_leave_every_minimum_and_the_budget() {
    let (budget, manager) = (Pages::from_mib(400), Pages::from_mib(4));
    let limits = Limits {
        min: Pages::from_mib(64),
        max: Pages::from_mib(256),
        shares: Shares::NORMAL,
        group: None,
    };
    let mut members = [1, 2].map(|id| Member::new(GuestId::new(id), limits));
    let mut policy = Policy::new(Settings::new(budget));
    let mut pools = Pages::ZERO;
    let mut given = [Pages::ZERO; 2];
    for second in 0..400 {
        let spent = Spent { pools, manager };
        let round = policy.round(SECOND, spent, &[], &mut members).unwrap();
        pools = pools.max(round.pools.alone);
        for (member, given) in members.iter_mut().zip(&mut given) {
            let bytes = told(&round, member.id.get()).limit_bytes.unwrap();
            *given = Pages::new(bytes / 4096);
            member.held = limits.max.min(*given);
            let mut report = Report::default();
            report.pages.private = member.held.get();
            member.on_report(report);
            member.on_limit_status(LimitStatus {
                limit_bytes: Some(bytes),
                ..LimitStatus::default()
            });
        }
        let used = pools + manager + members[0].held + members[1].held;
        assert!(used <= budget, "second {second}: {used}, pools {pools}");
    }
    assert!(
        pools >= Pages::from_mib(260),
        "they grow into what is not promised: {pools}"
    );
    assert!(given.iter().all(|&given| given >= limits.min), "{given:?}");
    // What guests share now counts for what several have, and for no guest's own.
    for member in &mut members {
        member.report.pages.shared = Pages::from_mib(40).get();
        member.held = Pages::from_mib(24);
        member.report.pages.private = member.held.get();
    }
    let spent = Spent { pools, manager };
    let room = policy.round(SECOND, spent, &[], &mut members).unwrap().pools;
    assert!(room.alone <= pools && room.all > pools, "{room:?}, {pools}");
}
