//! What the literature says of small cases, to the page.

use allocator::*;

fn claim(id: u64, max_mib: u64, active_mib: u64) -> Claim {
    Claim {
        active: Pages::from_mib(active_mib),
        ..Claim::new(
            GuestId::new(id),
            Pages::ZERO,
            Pages::from_mib(max_mib),
            Shares::NORMAL,
        )
    }
}

fn mib(memory_mib: u64, tax: Tax, claims: &[Claim]) -> Vec<f64> {
    let supply = Supply {
        memory: Pages::from_mib(memory_mib),
        tax,
    };
    let plan = Plan::compute(&Fleet::new(supply, &[], claims).expect("a fleet"));
    plan.targets().iter().map(|target| target.pages.mib()).collect()
}

#[test]
fn an_idle_and_a_busy_guest_in_360_mib() {
    let pair = |max| [claim(1, max, 0), claim(2, max, max)];
    assert_eq!(mib(360, Tax::DEFAULT, &pair(1000)), [72.0, 288.0]);
    assert_eq!(mib(360, Tax::DEFAULT, &pair(256)), [104.0, 256.0]);
    assert_eq!(mib(360, Tax::NONE, &pair(256)), [180.0, 180.0]);
    // What the paper's figure shows is the half of what is left of 360 MiB after 2 MiB of overhead.
    assert_eq!(mib(358, Tax::NONE, &pair(256)), [179.0, 179.0]);
}

/// τ -> 1: first every guest's active memory by shares, then the rest by shares above it.
#[test]
fn the_largest_tax_is_the_limit() {
    let claims = [claim(1, 1000, 100), claim(2, 1000, 300), claim(3, 1000, 0)];
    let near = |got: Vec<f64>, wanted: [f64; 3]| {
        for (got, wanted) in got.iter().zip(wanted) {
            assert!((got - wanted).abs() < 0.1, "{got} is not {wanted}");
        }
    };
    near(mib(300, Tax::MAX, &claims), [100.0, 200.0, 0.0]);
    near(mib(700, Tax::MAX, &claims), [200.0, 400.0, 100.0]);
    let almost = Tax::new(0.99).expect("a tax");
    let [a, b] = [mib(700, almost, &claims), mib(700, Tax::MAX, &claims)];
    assert!((a[1] - b[1]).abs() < 2.0, "{a:?} is far from its limit {b:?}");
}

#[test]
fn a_group_divides_what_its_shares_buy() {
    let groups = [
        Group::new(Shares::new(3000)),
        Group {
            tax: Some(Tax::NONE),
            ..Group::new(Shares::new(1000))
        },
    ];
    let inside = |id, group, active| Claim {
        group: Some(GroupId::new(group)),
        ..claim(id, 1000, active)
    };
    let claims = [
        inside(1, 0, 1000),
        inside(2, 0, 1000),
        inside(3, 1, 1000),
        inside(4, 1, 0),
    ];
    let supply = Supply {
        memory: Pages::from_mib(800),
        tax: Tax::DEFAULT,
    };
    let fleet = Fleet::new(supply, &groups, &claims).expect("a fleet");
    let plan = Plan::compute(&fleet);
    let got: Vec<f64> = plan.targets().iter().map(|target| target.pages.mib()).collect();
    // 3:1 between the groups; inside the second no tax, so its idle member gets half.
    assert_eq!(got, [300.0, 300.0, 100.0, 100.0]);
    assert_eq!(plan.groups()[0].pages, Pages::from_mib(600));
    let why = plan
        .explain(&fleet, GuestId::new(4))
        .expect("a guest")
        .to_string();
    assert!(
        why.contains("cost 1.00 times that (tax 0 %); group 1 has 51200 pages (200.0 MiB)"),
        "{why}"
    );
}

#[test]
fn every_bound_is_named() {
    let mut claims = [
        claim(1, 100, 100),
        claim(2, 1000, 1000),
        claim(3, 1000, 0),
        claim(4, 1000, 0),
    ];
    claims[3].min = Pages::from_mib(500);
    let supply = Supply {
        memory: Pages::from_mib(1000),
        tax: Tax::DEFAULT,
    };
    let fleet = Fleet::new(supply, &[], &claims).expect("a fleet");
    let plan = Plan::compute(&fleet);
    let bounds: Vec<Bound> = plan.targets().iter().map(|target| target.bound).collect();
    assert_eq!(
        bounds,
        [Bound::Maximum, Bound::Shares, Bound::Tax, Bound::Minimum]
    );
    let says = |guest, words: &str| {
        let why = plan
            .explain(&fleet, GuestId::new(guest))
            .expect("a guest")
            .to_string();
        assert!(why.contains(words), "{why}");
    };
    says(1, "all its max of 25600 pages (100.0 MiB) allows");
    says(2, "only more shares, a higher min or less competition would help");
    says(3, "of it are idle and cost 4.00 times that (tax 75 %)");
    says(4, "its min, although its 1000 shares pay only");
    assert_eq!(
        plan.explain(&fleet, GuestId::new(3))
            .expect("a guest")
            .sensitivity(),
        0.75
    );
}

/// At its last active page a guest is not taxed; the next one is idle.
#[test]
fn tax_begins_behind_the_last_active_page() {
    for (memory, bound) in [(999, Bound::Shares), (1000, Bound::Shares), (1001, Bound::Tax)] {
        let half_active = Claim {
            active: Pages::new(1000),
            ..Claim::new(GuestId::new(1), Pages::ZERO, Pages::new(2000), Shares::NORMAL)
        };
        let supply = Supply {
            memory: Pages::new(memory),
            tax: Tax::DEFAULT,
        };
        let fleet = Fleet::new(supply, &[], &[half_active]).expect("a fleet");
        assert_eq!(Plan::compute(&fleet).targets()[0].bound, bound, "{memory}");
    }
}

#[test]
fn a_single_page_has_a_price_at_the_largest_tax_too() {
    let busy = Claim {
        active: Pages::new(5),
        ..Claim::new(GuestId::new(1), Pages::ZERO, Pages::new(5), Shares::NORMAL)
    };
    let supply = Supply {
        memory: Pages::new(1),
        tax: Tax::MAX,
    };
    let plan = Plan::compute(&Fleet::new(supply, &[], &[busy]).expect("a fleet"));
    assert_eq!(plan.targets()[0].price, Some(1000.0));
}

#[test]
fn a_target_is_found_by_its_guest_s_number_in_whatever_order_guests_come() {
    for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
        let claims = order.map(|id| claim(id, 100 * id, 0));
        let supply = Supply {
            memory: Pages::from_mib(1000),
            tax: Tax::DEFAULT,
        };
        let plan = Plan::compute(&Fleet::new(supply, &[], &claims).expect("a fleet"));
        for id in order {
            let target = plan.target(GuestId::new(id)).expect("planned for");
            assert_eq!(
                (target.guest.get(), target.pages),
                (id, Pages::from_mib(100 * id))
            );
        }
        assert_eq!(plan.target(GuestId::new(4)), None);
    }
}

/// A group kept at its max or min says so to its members.
#[test]
fn a_groups_own_limits_are_named() {
    let groups = [
        Group {
            max: Pages::from_mib(100),
            ..Group::new(Shares::new(9000))
        },
        Group {
            min: Pages::from_mib(300),
            ..Group::new(Shares::new(1))
        },
        Group::new(Shares::NORMAL),
    ];
    let claims: Vec<Claim> = (0..3)
        .map(|id| Claim {
            group: Some(GroupId::new(id)),
            ..claim(u64::from(id), 1000, 1000)
        })
        .collect();
    let supply = Supply {
        memory: Pages::from_mib(600),
        tax: Tax::DEFAULT,
    };
    let plan = Plan::compute(&Fleet::new(supply, &groups, &claims).expect("a fleet"));
    let got: Vec<(f64, Bound)> = plan
        .groups()
        .iter()
        .map(|group| (group.pages.mib(), group.bound))
        .collect();
    assert_eq!(
        got,
        [
            (100.0, Bound::Maximum),
            (300.0, Bound::Minimum),
            (200.0, Bound::Shares)
        ]
    );
}

#[test]
fn thresholds_are_the_published_ones() {
    let total = Pages::new(100_000);
    let published = Thresholds::published(total);
    let got = State::ALL.map(|state| published.of(state).get());
    assert_eq!(got, [6_000, 4_000, 2_000, 1_000]);
    // Published as 899 MB for 28 GiB, with rounded steps; beyond it 1 % more.
    let big = Thresholds::sliding(Pages::from_mib(28 * 1024));
    assert!(
        (big.of(State::High).mib() - 901.1).abs() < 0.2,
        "{}",
        big.of(State::High)
    );
    let bigger = Thresholds::sliding(Pages::from_mib(128 * 1024));
    assert!(
        (bigger.of(State::High).mib() - 901.1 - 1024.0).abs() < 0.2,
        "{}",
        bigger.of(State::High)
    );
    let soft = bigger.of(State::Soft).of(bigger.of(State::High));
    assert!((soft - 0.64).abs() < 1e-3, "{soft}");
    assert_eq!(bigger.split().get(), 4 * bigger.of(State::High).get());
}

/// A minimum counts less what is shared, down to none: what a guest shares of it is there already.
#[test]
fn a_minimum_counts_less_what_is_shared() {
    let shares = |min, shared| Claim {
        min: Pages::from_mib(min),
        shared: Pages::from_mib(shared),
        ..claim(1, 256, 0)
    };
    let target = |first: Claim| mib(100, Tax::DEFAULT, &[first, claim(2, 256, 256)])[0];
    assert_eq!(target(shares(64, 0)), 64.0);
    assert_eq!(target(shares(64, 30)), 34.0);
    assert_eq!(
        target(shares(64, 200)),
        20.0,
        "its shares buy more than what is left of it"
    );
    assert_eq!(target(shares(256, 256)), 0.0);
}

#[test]
fn a_price_is_finite_or_there_is_none() {
    let claims = |min| {
        [claim(1, 256, 256), claim(2, 256, 0)].map(|claim| Claim {
            min: Pages::from_mib(min),
            ..claim
        })
    };
    let plan = |memory, min| {
        let supply = Supply {
            memory: Pages::from_mib(memory),
            tax: Tax::DEFAULT,
        };
        let fleet = Fleet::new(supply, &[], &claims(min)).expect("a fleet");
        let plan = Plan::compute(&fleet);
        let why = plan
            .explain(&fleet, GuestId::new(2))
            .expect("a guest")
            .to_string();
        assert!(!why.contains("inf") && !why.contains("NaN"), "{why}");
        (plan, why)
    };
    for memory in [0, 1, 63, 64, 65, 127, 128, 129, 511, 512, 513] {
        for min in [0, 32, 64] {
            let (plan, _) = plan(memory, min);
            let prices = plan.targets().iter().map(|target| target.price);
            for price in prices.chain([plan.price()]).flatten() {
                assert!(
                    price.is_finite() && price >= 0.0,
                    "{memory} MiB, min {min}: {price}"
                );
            }
            assert_eq!(
                plan.price().is_none(),
                memory <= 2 * min,
                "{memory} MiB, min {min}"
            );
            assert_eq!(
                plan.price() == Some(0.0),
                memory >= 512,
                "{memory} MiB, min {min}"
            );
        }
    }
    let (_, why) = plan(128, 64);
    assert!(
        why.contains("its min; no more memory than all minimums is there"),
        "{why}"
    );
    // One page beyond the minimums is sold, and has its price.
    let supply = Supply {
        memory: Pages::from_mib(128) + Pages::new(1),
        tax: Tax::DEFAULT,
    };
    let plan = Plan::compute(&Fleet::new(supply, &[], &claims(64)).expect("a fleet"));
    let last = 1000.0 / (64.0 * 256.0 + 1.0);
    let price = plan.price().expect("a page was sold");
    assert!((price / last - 1.0).abs() < 1e-6, "{price} is not {last}");
}
