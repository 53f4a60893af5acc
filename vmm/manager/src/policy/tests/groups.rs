//! Guests that claim memory together.

use super::model::*;
use super::*;

/// Three guests, the first two of a group that may hold 100 MiB, in a host with plenty of memory.
fn grouped(held: [u64; 3], seconds: u64) -> (ModelHost, Round) {
    let idle = || ModelGuest {
        active: Pages::ZERO,
        dead_balloon: true,
    };
    let mut host = ModelHost::new(Pages::from_mib(4096), (0..3).map(|_| idle()).collect());
    let group = Group {
        max: Pages::from_mib(100),
        ..Group::new(Shares::NORMAL)
    };
    let mut last = None;
    for _ in 0..seconds {
        for (member, held) in host.members.iter_mut().zip(held) {
            member.limits.min = Pages::from_mib(16);
            member.held = Pages::from_mib(held);
            member.report.pages.private = Pages::from_mib(held).get();
            member.squeezing = false;
        }
        for member in &mut host.members[..2] {
            member.limits.group = Some(allocator::GroupId::new(0));
            member.standing.waiting = 1;
        }
        let round = host
            .policy
            .round(SECOND, Spent::default(), &[group], &mut host.members);
        last = round.ok();
    }
    (host, last.unwrap())
}

#[test]
fn limits_of_a_groups_members_never_exceed_its_max() {
    for held in [
        [5, 5, 200],
        [60, 30, 200],
        [99, 0, 5],
        [120, 130, 200],
        [256, 16, 0],
    ] {
        let (host, round) = grouped(held, 2);
        assert_eq!(round.state, State::High);
        let limits = [0, 1, 2].map(|guest| told(&round, guest).limit_bytes.unwrap() >> 20);
        assert!(limits[0] + limits[1] <= 100, "{held:?}: {limits:?}");
        assert!(limits[2] >= 256, "beside the group there is plenty: {limits:?}");
        // What is held above the max counts until it is given up, and nothing is handed out meanwhile.
        let force: Pages = host.members[..2].iter().map(Member::in_force).sum();
        assert!(
            force <= Pages::from_mib((held[0] + held[1]).max(100)),
            "{held:?}: {force}"
        );
    }
}

#[test]
fn above_a_groups_max_memory_is_reclaimed_although_the_host_has_plenty() {
    let (mut host, _) = grouped([120, 130, 200], 1);
    for member in &mut host.members {
        let mut report = member.report.clone();
        report.activity = Activity {
            periods: 1,
            last: (0, 100),
            running: (0, 0),
        };
        member.on_report(report);
    }
    let group = Group {
        max: Pages::from_mib(100),
        ..Group::new(Shares::NORMAL)
    };
    host.policy.replan();
    let round = host
        .policy
        .round(SECOND, Spent::default(), &[group], &mut host.members)
        .unwrap();
    assert_eq!(round.state, State::High);
    let squeezed = [0, 1, 2].map(|guest| told(&round, guest).compress_pages > 0);
    assert_eq!(squeezed, [true, true, false]);
}
