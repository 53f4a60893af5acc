//! The ladder: order, limits and rates of what is done to guests.

use std::time::Duration;

use allocator::*;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const GOAL: Pages = Pages::new(10_000);

fn answers(room: u64, size: u64) -> Balloon {
    Balloon::Answers {
        room: Pages::new(room),
        size: Pages::new(size),
    }
}

/// A guest of 100,000 pages, all idle, all held.
fn full(id: u64, balloon: Balloon) -> Claim {
    let all = Pages::new(100_000);
    Claim {
        active: Pages::ZERO,
        holding: Holding {
            held: all,
            balloon,
            shareable: all,
            compressible: Pages::new(20_000),
            swappable: all,
        },
        ..Claim::new(GuestId::new(id), Pages::ZERO, all, Shares::NORMAL)
    }
}

fn now(state: State, free: u64, seconds: u64) -> Situation {
    Situation {
        state,
        free: Pages::new(free),
        goal: GOAL,
        elapsed: Duration::from_secs(seconds),
    }
}

fn decide(memory: u64, claims: &[Claim], now: Situation) -> Vec<(u64, Action, u64)> {
    let supply = Supply {
        memory: Pages::new(memory),
        tax: Tax::DEFAULT,
    };
    let fleet = Fleet::new(supply, &[], claims).expect("a fleet");
    let mut steps = Vec::new();
    Ladder::default().decide(&fleet, &Plan::compute(&fleet), now, &mut steps);
    steps
        .into_iter()
        .map(|step| (step.guest.get(), step.action, step.pages.get()))
        .collect()
}

#[test]
fn high_reclaims_nothing() {
    assert_eq!(
        decide(50_000, &[full(1, answers(65_000, 0))], now(State::High, 0, 15)),
        []
    );
}

#[test]
fn soft_asks_the_balloon_and_goes_beyond_it_only_where_it_cannot() {
    let only_balloon = decide(90_000, &[full(1, answers(65_000, 0))], now(State::Soft, 0, 15));
    assert_eq!(only_balloon, [(1, Action::Balloon, 10_000)]);
    let no_room = decide(90_000, &[full(1, answers(4_000, 0))], now(State::Soft, 0, 15));
    assert_eq!(
        no_room,
        [
            (1, Action::Balloon, 4_000),
            (1, Action::Share, 6_000),
            (1, Action::Compress, 6_000)
        ]
    );
    let silent = decide(90_000, &[full(1, Balloon::Silent)], now(State::Soft, 0, 15));
    assert_eq!(
        silent,
        [(1, Action::Share, 10_000), (1, Action::Compress, 10_000)]
    );
}

#[test]
fn hard_uses_every_way_in_the_papers_order() {
    let goal = Situation {
        goal: Pages::new(60_000),
        ..now(State::Hard, 0, 1)
    };
    let steps = decide(40_000, &[full(1, answers(65_000, 0))], goal);
    // 60,000 are missing; a second's rates are 16,384 for the balloon, 10,000 to compress, 4,096 to swap.
    let wanted = [
        (1, Action::Balloon, 16_384),
        (1, Action::Share, 10_000),
        (1, Action::Compress, 10_000),
        (1, Action::Swap, 4_096),
    ];
    assert_eq!(steps, wanted);
}

#[test]
fn low_also_blocks_who_is_above_its_target() {
    let small = Claim {
        holding: Holding {
            held: Pages::new(10),
            ..Holding::default()
        },
        ..Claim::new(GuestId::new(2), Pages::ZERO, Pages::new(100_000), Shares::NORMAL)
    };
    let steps = decide(
        90_000,
        &[full(1, answers(65_000, 0)), small],
        now(State::Low, 0, 15),
    );
    let blocked: Vec<_> = steps.iter().filter(|step| step.1 == Action::Block).collect();
    assert_eq!(blocked, [&(1, Action::Block, 82_000)]);
}

#[test]
fn what_is_missing_is_asked_in_proportion_to_the_surplus() {
    let mut other = full(2, answers(65_000, 0));
    other.min = Pages::new(70_000);
    let steps = decide(
        80_000,
        &[full(1, answers(65_000, 0)), other],
        now(State::Soft, 4_000, 15),
    );
    // 90,000 and 30,000 above their targets, 6,000 missing.
    assert_eq!(steps, [(1, Action::Balloon, 4_500), (2, Action::Balloon, 1_500)]);
}

#[test]
fn a_share_of_what_is_missing_is_rounded_up() {
    let claims = [1, 2, 3].map(|id| full(id, answers(65_000, 0)));
    // 100 pages of three equal guests: rounded down one page would be missing for ever.
    let steps = decide(150_000, &claims, now(State::Soft, GOAL.get() - 100, 15));
    assert_eq!(steps, [1, 2, 3].map(|id| (id, Action::Balloon, 34)));
    let one = decide(150_000, &claims, now(State::Soft, GOAL.get() - 1, 15));
    assert_eq!(one, [1, 2, 3].map(|id| (id, Action::Balloon, 1)));
}

#[test]
fn within_a_hundredth_of_its_size_above_its_target_a_guest_is_left_alone() {
    for state in State::ALL {
        let steps = decide(99_000, &[full(1, answers(65_000, 0))], now(state, 0, 15));
        assert_eq!(steps, [], "{state}");
    }
    let steps = decide(98_999, &[full(1, answers(65_000, 0))], now(State::Soft, 0, 15));
    assert_eq!(steps, [(1, Action::Balloon, 1_001)]);
}

#[test]
fn in_the_soft_state_the_other_ways_do_not_stand_in_for_a_balloon_that_is_only_slow() {
    let goal = Situation {
        goal: Pages::new(60_000),
        ..now(State::Soft, 0, 1)
    };
    let steps = decide(40_000, &[full(1, answers(65_000, 0))], goal);
    assert_eq!(steps, [(1, Action::Balloon, 16_384)], "it has room for all of it");
    let steps = decide(40_000, &[full(1, answers(50_000, 0))], goal);
    let beyond = [
        (Action::Balloon, 16_384),
        (Action::Share, 10_000),
        (Action::Compress, 10_000),
    ];
    assert_eq!(steps, beyond.map(|(action, pages)| (1, action, pages)));
}

/// Two guests of a group that may hold 50,000 pages, and one outside.
fn crowded(state: State, parent: bool) -> Vec<(u64, Action, u64)> {
    let small = Group {
        max: Pages::new(50_000),
        ..Group::new(Shares::NORMAL)
    };
    let inner = Group {
        parent: Some(GroupId::new(0)),
        ..Group::new(Shares::NORMAL)
    };
    let group = Some(GroupId::new(u32::from(parent)));
    let mut claims = [1, 2, 3].map(|id| full(id, answers(20_000, 0)));
    for (claim, held) in claims.iter_mut().zip([60_000, 30_000]) {
        claim.group = group;
        claim.holding.held = Pages::new(held);
    }
    let supply = Supply {
        memory: Pages::new(500_000),
        tax: Tax::DEFAULT,
    };
    let groups = if parent { vec![small, inner] } else { vec![small] };
    let fleet = Fleet::new(supply, &groups, &claims).expect("a fleet");
    let mut steps = Vec::new();
    Ladder::default().decide(
        &fleet,
        &Plan::compute(&fleet),
        now(state, 100_000, 15),
        &mut steps,
    );
    steps
        .into_iter()
        .map(|step| (step.guest.get(), step.action, step.pages.get()))
        .collect()
}

#[test]
fn what_a_group_holds_above_its_max_is_reclaimed_in_every_state() {
    let ways = [Action::Balloon, Action::Compress, Action::Swap];
    for state in State::ALL {
        for parent in [false, true] {
            let steps = crowded(state, parent);
            let of = |guest| -> u64 {
                let own = steps
                    .iter()
                    .filter(|step| step.0 == guest && ways.contains(&step.1));
                own.map(|step| step.2).sum()
            };
            // Each should hold 25,000: 35,000 and 5,000 above, 40,000 together.
            assert_eq!((of(1), of(2), of(3)), (35_000, 5_000, 0), "{state}: {steps:?}");
            assert!(
                steps.contains(&(1, Action::Balloon, 20_000)),
                "{state}: the balloon comes first"
            );
        }
    }
}

#[test]
fn a_group_owes_what_it_holds_above_its_max_and_no_more() {
    let small = Group {
        max: Pages::new(50_000),
        ..Group::new(Shares::NORMAL)
    };
    let mut claims = [1, 2].map(|id| full(id, answers(100_000, 0)));
    claims[0].group = Some(GroupId::new(0));
    claims[0].holding.held = Pages::new(60_000);
    let supply = Supply {
        memory: Pages::new(60_000),
        tax: Tax::DEFAULT,
    };
    let fleet = Fleet::new(supply, &[small], &claims).expect("a fleet");
    let (mut steps, now) = (Vec::new(), now(State::High, 100_000, 15));
    Ladder::default().decide(&fleet, &Plan::compute(&fleet), now, &mut steps);
    // It is 30,000 above its target; what the guest outside holds is not the group's.
    let balloon = Step {
        guest: GuestId::new(1),
        action: Action::Balloon,
        pages: Pages::new(10_000),
    };
    assert_eq!(steps, [balloon]);
}

#[test]
fn a_balloon_that_keeps_its_guest_small_is_released() {
    let mut guest = full(1, answers(20_000, 45_000));
    guest.holding.held = Pages::new(55_000);
    let released = decide(90_000, &[guest], now(State::High, 20_000, 15));
    assert_eq!(released, [(1, Action::Release, 35_000)]);
    assert_eq!(
        decide(90_000, &[guest], now(State::Hard, 20_000, 15)),
        [],
        "not while memory is that short"
    );
    // Within one percent of the size nothing moves, except a balloon that may go altogether.
    assert_eq!(decide(55_900, &[guest], now(State::High, 20_000, 15)), []);
    guest.holding = Holding {
        held: Pages::new(99_500),
        balloon: answers(0, 500),
        ..guest.holding
    };
    assert_eq!(
        decide(200_000, &[guest], now(State::High, 20_000, 15)),
        [(1, Action::Release, 500)]
    );
}

#[test]
fn a_balloon_that_has_about_what_was_asked_is_taken_back() {
    let mut watch = BalloonWatch::default();
    let second = Duration::from_secs(1);
    // Asked for 40 MiB, it goes back to nothing: a guest in pain.
    watch.observe(Pages::from_mib(40), Pages::from_mib(40), second);
    for _ in 0..10 {
        watch.observe(Pages::from_mib(40), Pages::ZERO, second);
    }
    assert!(!watch.answers());
    // Nothing more is asked of it, so it can show no progress.
    assert!(watch.observe(Pages::ZERO, Pages::ZERO, second));
    // A difference that no driver follows is not silence.
    for _ in 0..10 {
        assert!(watch.observe(BalloonWatch::SLACK, Pages::ZERO, second));
    }
    for _ in 0..6 {
        watch.observe(BalloonWatch::SLACK + Pages::new(1), Pages::ZERO, second);
    }
    assert!(!watch.answers(), "one page more is");
}

#[test]
fn a_dead_balloon_is_given_up_and_taken_back() {
    let mut watch = BalloonWatch::default();
    let second = Duration::from_secs(1);
    let asked = Pages::new(1000);
    assert!(watch.observe(Pages::ZERO, Pages::ZERO, second));
    for _ in 0..5 {
        assert!(watch.observe(asked, Pages::ZERO, second));
    }
    assert!(
        !watch.observe(asked, Pages::ZERO, second),
        "five seconds without progress"
    );
    assert!(watch.observe(asked, Pages::new(1), second), "a page is progress");
    for _ in 0..6 {
        watch.observe(asked, Pages::new(1), second);
    }
    assert!(!watch.answers(), "but only once");
    assert!(
        watch.observe(Pages::ZERO, Pages::ZERO, second),
        "deflating is, too"
    );
}

#[test]
fn only_what_a_balloon_brings_by_its_pace_is_waited_for() {
    let (second, asked) = (Duration::from_secs(1), Pages::new(60_000));
    let run = |sizes: &[u64], held: &[u64]| {
        let mut pace = BalloonPace::default();
        for (&size, &held) in sizes.iter().zip(held) {
            pace.observe(asked, Pages::new(size), Pages::new(held), second);
        }
        pace.within(asked, second).get()
    };
    let dripping: Vec<u64> = (0..10).collect();
    let falling: Vec<u64> = (0..10).map(|seconds| 90_000 - 1_000 * seconds).collect();
    assert_eq!(
        run(&dripping[..2], &falling),
        60_000,
        "its first two seconds it may take"
    );
    assert_eq!(
        run(&dripping[..3], &falling),
        1,
        "a page a second, from the third on"
    );
    assert_eq!(run(&dripping, &falling), 1);
    let fast: Vec<u64> = (0..10).map(|seconds| 1_000 * seconds).collect();
    assert_eq!(run(&fast, &falling), 1_000);
    assert_eq!(run(&fast, &[90_000; 10]), 0, "its word alone brings nothing");
    // Short rounds are added up to a second.
    let mut pace = BalloonPace::default();
    for round in 0..40 {
        pace.observe(
            asked,
            Pages::new(250 * round),
            Pages::new(90_000 - 250 * round),
            second / 4,
        );
    }
    assert_eq!(pace.within(asked, second / 4).get(), 250);
    // Once it has what was asked it is measured anew.
    let nearly = asked - BalloonWatch::SLACK;
    pace.observe(asked, nearly - Pages::new(1), Pages::new(90_000), second);
    assert_eq!(pace.within(asked, second), Pages::ZERO, "it is behind");
    pace.observe(asked, nearly, Pages::new(50_000), second);
    assert_eq!(pace.within(asked, second), asked);
}

/// What is done to each guest of `fleet` by a plan that was made for `planned`.
fn done(planned: &Fleet, fleet: &Fleet) -> Vec<Step> {
    let mut steps = Vec::new();
    let short = now(State::Low, 0, 15);
    Ladder::default().decide(fleet, &Plan::compute(planned), short, &mut steps);
    steps
}

proptest! {
    #![proptest_config(ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("regressions")))]

    /// No guest is asked for more than its surplus, its ways' limits or their rates; sharing is tried on no fewer pages
    /// than are compressed and swapped, as far as there are such pages; the order is the paper's.
    #[test]
    fn steps_stay_within_every_limit(
        guests in prop::collection::vec(
            (1..200_000_u64, 0..1000_u64, 0..1000_u64, (0..1000_u64, 0..1000_u64), any::<bool>()),
            1..10,
        ),
        state in prop::sample::select(State::ALL.to_vec()),
        (memory, free) in (0..400_000_u64, 0..20_000_u64),
        millis in 0..20_000_u64,
    ) {
        let claims: Vec<Claim> = guests.iter().enumerate().map(|(id, &(max, held, room, (share, swap), silent))| {
            let part = |thousandths| Pages::new(max * thousandths / 1000);
            let size = (Pages::new(max) - part(held)).min(part(600));
            let balloon = Balloon::Answers { room: part(room).min(part(held)), size };
            Claim {
                active: part(swap),
                holding: Holding {
                    held: part(held),
                    balloon: if silent { Balloon::Silent } else { balloon },
                    shareable: part(share).min(part(held)),
                    compressible: part(swap).min(part(held)),
                    swappable: part(held),
                },
                ..Claim::new(GuestId::new(id as u64), Pages::ZERO, Pages::new(max), Shares::NORMAL)
            }
        }).collect();
        let supply = Supply { memory: Pages::new(memory), tax: Tax::DEFAULT };
        let fleet = Fleet::new(supply, &[], &claims).expect("a fleet");
        let plan = Plan::compute(&fleet);
        let now = Situation { state, free: Pages::new(free), goal: GOAL, elapsed: Duration::from_millis(millis) };
        let mut steps = Vec::new();
        Ladder::default().decide(&fleet, &plan, now, &mut steps);
        for (claim, target) in claims.iter().zip(plan.targets()) {
            let own: Vec<&Step> = steps.iter().filter(|step| step.guest == claim.guest).collect();
            let of = |action| own.iter().find(|step| step.action == action).map_or(Pages::ZERO, |step| step.pages);
            let order: Vec<Action> = own.iter().map(|step| step.action).collect();
            prop_assert!(order.is_sorted(), "{order:?}");
            for step in &own {
                prop_assert!(state.permits(step.action) != Permission::No);
            }
            let (balloon, compress, swap) = (of(Action::Balloon), of(Action::Compress), of(Action::Swap));
            let taken = balloon + compress + swap;
            prop_assert!(taken <= claim.holding.held - target.pages);
            prop_assert!(compress <= claim.holding.compressible);
            let second = |pages: u64| Pages::new(pages * millis / 1000);
            prop_assert!(balloon <= second(16_384) && compress <= second(10_000) && swap <= second(4_096));
            let tried = (compress + swap).min(claim.holding.shareable).min(second(10_000));
            prop_assert!(of(Action::Share) >= tried);
            if own.iter().any(|step| step.action == Action::Release) {
                let Balloon::Answers { size, .. } = claim.holding.balloon else {
                    return Err(TestCaseError::fail("a silent balloon was released"));
                };
                prop_assert!(taken == Pages::ZERO && of(Action::Release) <= size);
                prop_assert!(claim.max - size + of(Action::Release) <= target.size, "beyond the target");
            }
        }
        let taken: u64 = steps.iter()
            .filter(|step| [Action::Balloon, Action::Compress, Action::Swap].contains(&step.action))
            .map(|step| step.pages.get()).sum();
        prop_assert!(taken <= GOAL.less(Pages::new(free)).get() + claims.len() as u64, "more than is missing");
    }

    /// Guests that come or go after a plan was made get no other guest's target: each is held to its own, and those
    /// that the plan does not know are left alone.
    #[test]
    fn a_plan_for_another_fleet_is_applied_to_the_right_guests(
        guests in prop::collection::vec((1000..200_000_u64, 0..1000_u64, 0..1000_u64), 1..10),
        (gone, came) in (any::<u16>(), any::<u16>()),
        memory in 0..400_000_u64,
        turn in 0..10_usize,
    ) {
        let claims: Vec<Claim> = guests.iter().enumerate().map(|(id, &(max, held, active))| {
            let part = |thousandths| Pages::new(max * thousandths / 1000);
            Claim {
                active: part(active),
                holding: Holding { held: part(held), swappable: part(held), ..Holding::default() },
                ..Claim::new(GuestId::new(id as u64), Pages::ZERO, Pages::new(max), Shares::NORMAL)
            }
        }).collect();
        let supply = Supply { memory: Pages::new(memory), tax: Tax::DEFAULT };
        let without = |mask: u16| -> Vec<Claim> {
            claims.iter().filter(|claim| mask >> claim.guest.get() & 1 == 0).copied().collect()
        };
        let planned = Fleet::new(supply, &[], &without(came)).expect("a fleet");
        let mut present = without(gone);
        let turn = turn % present.len().max(1);
        present.rotate_left(turn);
        let present = Fleet::new(supply, &[], &present).expect("a fleet");
        let plan = Plan::compute(&planned);
        for step in done(&planned, &present) {
            let target = plan.target(step.guest);
            let claim = claims[step.guest.get() as usize];
            prop_assert!(target.is_some_and(|target| target.guest == step.guest), "{step:?}");
            let above = claim.holding.held.less(target.map_or(Pages::ZERO, |target| target.pages));
            prop_assert!(step.pages <= above, "{step:?}, {above} above its target");
            prop_assert!(present.claims().iter().any(|claim| claim.guest == step.guest));
        }
        for claim in present.claims() {
            let why = plan.explain_claim(&present, claim);
            prop_assert_eq!(why.is_some(), planned.claims().iter().any(|other| other.guest == claim.guest));
            prop_assert!(why.is_none_or(|why| why.target.guest == claim.guest));
        }
    }
}
