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
    // A difference that no driver follows is no silence.
    for _ in 0..10 {
        assert!(watch.observe(Pages::new(200), Pages::ZERO, second));
    }
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
    assert!(
        watch.observe(Pages::ZERO, Pages::ZERO, second),
        "deflating is, too"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("regressions")))]

    /// Nobody is asked for more than its surplus, its ways' limits or their rates; sharing is tried on no fewer pages
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
}
