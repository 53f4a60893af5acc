//! Admission, and the reserve for sharing to come apart.

use allocator::*;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

fn guest(id: u64, min: u64, max: u64, overhead: u64) -> Reservation {
    Reservation {
        guest: GuestId::new(id),
        min: Pages::new(min),
        max: Pages::new(max),
        overhead: Pages::new(overhead),
    }
}

const HOST: Admission = Admission {
    memory: Pages::new(1000),
    backing: Pages::new(500),
    break_reserve: Pages::new(100),
};

fn refusal(admitted: &[Reservation], applicant: &Reservation) -> Refusal {
    match HOST.check(admitted, applicant) {
        Err(AdmissionError::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn what_fits_exactly_fits() {
    let left = HOST
        .check(&[guest(1, 300, 500, 50)], &guest(2, 500, 800, 50))
        .expect("it fits");
    assert_eq!(
        left,
        Headroom {
            memory: Pages::ZERO,
            backing: Pages::ZERO
        }
    );
}

#[test]
fn the_largest_guest_is_one_of_all_that_counts() {
    let host = Admission {
        memory: Pages::LIMIT,
        backing: Pages::LIMIT,
        break_reserve: Pages::ZERO,
    };
    let most = Pages::LIMIT.get();
    let left = host.check(&[], &guest(1, most / 2, most, 0)).expect("it fits");
    assert_eq!((left.memory, left.backing), (Pages::ZERO, Pages::ZERO));
}

#[test]
fn a_refusal_says_what_is_missing_and_what_would_fit() {
    let short = refusal(&[guest(1, 300, 500, 50)], &guest(2, 501, 700, 50));
    assert_eq!(
        (short.missing_memory, short.missing_backing),
        (Pages::new(1), Pages::ZERO)
    );
    assert_eq!(short.fitting, Some((Pages::new(500), Pages::new(700))));
    let short = refusal(&[], &guest(2, 0, 600, 0));
    assert_eq!(
        (short.missing_memory, short.missing_backing),
        (Pages::ZERO, Pages::new(100))
    );
    assert_eq!(short.higher_min, Some(Pages::new(100)));
    let text = short.to_string();
    for words in [
        "guest 2 does not fit",
        "100 pages (0.4 MiB) of swap",
        "this max with a min of 100 pages",
    ] {
        assert!(text.contains(words), "{text}");
    }
    let filling = refusal(&[], &guest(2, 0, 600, 800));
    assert_eq!(filling.higher_min, Some(Pages::new(100)), "to the last page");
    let crowded = refusal(&[], &guest(2, 850, 1000, 60));
    assert_eq!(crowded.fitting, Some((Pages::new(840), Pages::new(1000))));
    assert_eq!(crowded.higher_min, None, "a lower one is what would fit");
    let hopeless = refusal(&[guest(1, 900, 900, 0)], &guest(2, 5, 5, 1)).to_string();
    assert!(hopeless.contains("nothing is left for it"), "{hopeless}");
}

#[test]
fn limits_that_contradict_themselves_are_invalid() {
    for bad in [guest(3, 2, 1, 0), guest(3, 0, 0, 0), guest(3, 0, u64::MAX, 0)] {
        let error = HOST.check(&[], &bad).expect_err("invalid");
        assert!(
            matches!(error, AdmissionError::Invalid { .. }) && error.to_string().contains("guest 3"),
            "{error}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_failure_persistence(FileFailurePersistence::WithSource("regressions")))]

    /// Whatever a refusal offers is then admitted.
    #[test]
    fn what_would_fit_fits(
        admitted in prop::collection::vec((0..300_u64, 0..300_u64, 0..50_u64), 0..5),
        (min, more, overhead) in (0..1200_u64, 0..1200_u64, 0..200_u64),
    ) {
        let admitted: Vec<Reservation> =
            admitted.iter().map(|&(min, more, overhead)| guest(9, min, min + more, overhead)).collect();
        let asked = guest(1, min, min + more, overhead);
        if let Err(AdmissionError::Refused(refusal)) = HOST.check(&admitted, &asked) {
            prop_assert!(refusal.missing_memory + refusal.missing_backing > Pages::ZERO);
            if let Some((min, max)) = refusal.fitting {
                let smaller = Reservation { min, max, ..asked };
                prop_assert!(HOST.check(&admitted, &smaller).is_ok());
            }
            if let Some(min) = refusal.higher_min {
                let firmer = Reservation { min, ..asked };
                prop_assert!(HOST.check(&admitted, &firmer).is_ok());
            }
        }
    }

    /// What was admitted makes a fleet, whatever the memory, the activity and the sharing are later, and every guest's
    /// target is at least what it does not share of its minimum.
    #[test]
    fn what_was_admitted_can_always_be_planned_for(
        guests in prop::collection::vec((any::<u64>(), any::<u64>(), 0..1000_u64, any::<u64>(), any::<u64>()), 1..8),
        scale in prop::sample::select(vec![1_u64 << 10, 1 << 24, 1 << 39, 1 << 41, u64::MAX]),
        (memory, backing, later) in (any::<u64>(), any::<u64>(), any::<u64>()),
    ) {
        let host = Admission {
            memory: Pages::new(memory % scale),
            backing: Pages::new(backing % scale),
            break_reserve: Pages::ZERO,
        };
        let (mut admitted, mut claims) = (Vec::new(), Vec::new());
        for (id, (min, more, overhead, active, shared)) in guests.into_iter().enumerate() {
            let min = min % (scale / 3);
            let asked = guest(id as u64, min, min + more % (scale / 3), overhead);
            if host.check(&admitted, &asked).is_ok() {
                admitted.push(asked);
                claims.push(Claim {
                    active: Pages::new(active),
                    shared: Pages::new(shared % asked.max.get().saturating_mul(2)),
                    ..Claim::new(asked.guest, asked.min, asked.max, Shares::NORMAL)
                });
            }
        }
        let supply = Supply { memory: Pages::new(later % scale).min(Pages::LIMIT), tax: Tax::DEFAULT };
        let fleet = Fleet::new(supply, &[], &claims).expect("they were admitted");
        let plan = Plan::compute(&fleet);
        for claim in &claims {
            let target = plan.target(claim.guest).expect("planned for");
            prop_assert!(target.pages >= claim.min.less(claim.shared));
            prop_assert!(target.pages <= claim.max.less(claim.shared));
        }
        let given: Pages = plan.targets().iter().map(|target| target.pages).sum();
        prop_assert!(given <= supply.memory.max(fleet.minimums()));
    }

    /// The reserve is never more than the debt, whatever was observed.
    #[test]
    fn no_reserve_beyond_the_debt(
        guests in prop::collection::vec((prop::collection::vec(any::<u64>(), 0..30), 0..1_000_000_u64), 0..6),
        tolerated in 0.0..1.0_f64,
        horizon in any::<u32>(),
    ) {
        let meters: Vec<(BreakMeter, Pages)> = guests.into_iter().map(|(windows, shared)| {
            let mut meter = BreakMeter::default();
            windows.into_iter().for_each(|breaks| meter.observe(Pages::new(breaks)));
            (meter, Pages::new(shared))
        }).collect();
        let guests: Vec<(&BreakMeter, Pages)> = meters.iter().map(|(meter, shared)| (meter, *shared)).collect();
        let debt: Pages = guests.iter().map(|(_, shared)| *shared).sum();
        for dependence in [Dependence::Unknown, Dependence::Independent] {
            let overbooking = Overbooking::new(tolerated, horizon, dependence).expect("a probability");
            prop_assert!(overbooking.reserve(&guests) <= debt);
        }
    }
}

/// Numbers that depend on the seed alone.
struct Dice(u64);

impl Dice {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Breaks of one window: few, and now and then a burst with a heavy tail.
    fn breaks(&mut self) -> Pages {
        let calm = 20.0 * self.unit();
        let burst = if self.unit() < 0.02 {
            200.0 / self.unit().max(0.01)
        } else {
            0.0
        };
        Pages::new((calm + burst) as u64)
    }
}

/// The bound holds: of many hosts, no larger part runs short than is tolerated; and it reserves less than the debt.
#[test]
fn hosts_run_short_no_more_often_than_tolerated() {
    let (tolerated, hosts, guests, shared) = (0.05, 400, 5, Pages::new(50_000));
    for dependence in [Dependence::Unknown, Dependence::Independent] {
        let overbooking = Overbooking::new(tolerated, 2, dependence).expect("a probability");
        let mut short = 0;
        let mut reserves = Pages::ZERO;
        for seed in 0..hosts {
            let mut dice = Dice(seed);
            let mut meters = vec![BreakMeter::default(); guests];
            for meter in &mut meters {
                (0..600).for_each(|_| meter.observe(dice.breaks()));
            }
            let known: Vec<_> = meters.iter().map(|meter| (meter, shared)).collect();
            let reserve = overbooking.reserve(&known);
            let needed: Pages = (0..2 * guests).map(|_| dice.breaks()).sum();
            short += u64::from(needed > reserve);
            reserves += reserve;
        }
        assert!(
            short as f64 <= tolerated * hosts as f64,
            "{short} of {hosts} ran short ({dependence:?})"
        );
        let mean = reserves.get() / hosts;
        assert!(
            mean < shared.get() * guests as u64 / 4,
            "a reserve of {mean} pages saves nothing"
        );
    }
}

#[test]
fn without_enough_windows_all_debt_is_reserved() {
    let mut meter = BreakMeter::default();
    let shared = Pages::new(5000);
    let demand = meter.demand(shared, 2, 0.01);
    assert_eq!((demand.pages, demand.measured), (shared, false));
    (0..98).for_each(|_| meter.observe(Pages::new(3)));
    assert!(!meter.demand(shared, 2, 0.01).measured);
    meter.observe(Pages::new(3));
    let demand = meter.demand(shared, 2, 0.01);
    // 100 windows with the one to come: it exceeds the largest of 99 with 1 %.
    assert!(demand.measured);
    assert_eq!(
        (demand.rate, demand.burst, demand.pages),
        (Pages::new(3), Pages::ZERO, Pages::new(6))
    );
    assert!(!meter.demand(shared, 2, 0.009).measured);
    meter.observe(Pages::new(1000));
    assert_eq!(meter.demand(shared, 2, 0.01).burst, Pages::new(997));
    (0..BreakMeter::WINDOWS).for_each(|_| meter.observe(Pages::ZERO));
    assert_eq!(
        meter.demand(shared, 2, 0.01).pages,
        Pages::ZERO,
        "old windows are forgotten"
    );
}

/// The least of what the median, the 99th hundredth and twice the mean need, whatever the order of the windows.
#[test]
fn the_rate_that_needs_the_least_is_chosen() {
    let demand = |windows: Vec<u64>, horizon| {
        let mut meter = BreakMeter::default();
        windows
            .into_iter()
            .for_each(|breaks| meter.observe(Pages::new(breaks)));
        let demand = meter.demand(Pages::LIMIT, horizon, 0.02);
        (demand.rate.get(), demand.burst.get(), demand.pages.get())
    };
    let falling = || (0..100).rev().collect();
    assert_eq!(demand(falling(), 1), (99, 0, 99));
    assert_eq!(demand(falling(), 1000), (50, 1225, 51_225));
    let mut late = vec![0; 97];
    late.extend([100; 3]);
    assert_eq!(demand(late, 1), (100, 0, 100));
}

/// Guests that break together need the sum of their bursts, guests that take turns that of one; both are measured.
#[test]
fn what_guests_have_in_common_is_measured() {
    let burst_at = |turn: u64| {
        let mut meter = BreakMeter::default();
        (0..1000).for_each(|window| meter.observe(Pages::new(if window % 20 == turn { 100 } else { 0 })));
        meter
    };
    let overbooking = Overbooking::new(0.01, 1, Dependence::Unknown).expect("a probability");
    let reserve = |turns: [u64; 4]| {
        let meters = turns.map(burst_at);
        overbooking
            .reserve(&meters.each_ref().map(|meter| (meter, Pages::new(500))))
            .get()
    };
    assert_eq!(reserve([7, 7, 7, 7]), 400);
    assert_eq!(reserve([2, 7, 12, 17]), 100);
}

#[test]
fn many_independent_guests_need_less() {
    let mut meter = BreakMeter::default();
    (0..20).for_each(|_| meter.observe(Pages::new(1)));
    let guests = vec![(&meter, Pages::new(1000)); 100];
    let reserve = |dependence| {
        Overbooking::new(0.001, 2, dependence)
            .expect("a probability")
            .reserve(&guests)
            .get()
    };
    assert_eq!(reserve(Dependence::Unknown), 100_000, "too few windows for 0.1 %");
    // 100 * 2 + 1000 * sqrt(100 ln(1000) / 2).
    assert_eq!(reserve(Dependence::Independent), 18_785);
}
