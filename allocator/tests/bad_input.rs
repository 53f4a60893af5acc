//! Every contradiction is refused, by a typed error that names the guest and the values.

use allocator::*;

const SUPPLY: Supply = Supply {
    memory: Pages::new(1000),
    tax: Tax::DEFAULT,
};

fn claim(id: u64, min: u64, max: u64) -> Claim {
    Claim::new(GuestId::new(id), Pages::new(min), Pages::new(max), Shares::NORMAL)
}

/// Why the minimums are not covered, which must also say `words` to people.
fn uncovered(groups: &[Group], claims: &[Claim], words: &str) -> FleetError {
    let fleet = Fleet::new(SUPPLY, groups, claims).expect("limits that agree with each other");
    let error = fleet.covers_minimums().expect_err("more minimums than memory");
    assert!(error.to_string().contains(words), "{error}");
    error
}

/// The error, which must also say `words` to people.
fn refused(supply: Supply, groups: &[Group], claims: &[Claim], words: &str) -> FleetError {
    let error = Fleet::new(supply, groups, claims).expect_err("a bad fleet");
    assert!(error.to_string().contains(words), "{error}");
    error
}

#[test]
fn claims_that_contradict_themselves() {
    let owner = Owner::Guest(GuestId::new(2));
    let error = refused(
        SUPPLY,
        &[],
        &[claim(1, 0, 5), claim(2, 9, 5)],
        "guest 2: min of 9 pages (0.0 MiB) is above max",
    );
    assert_eq!(
        error,
        FleetError::MinAboveMax {
            owner,
            min: Pages::new(9),
            max: Pages::new(5)
        }
    );
    let error = refused(SUPPLY, &[], &[claim(2, 0, 0)], "guest 2: max is 0 pages");
    assert_eq!(
        error,
        FleetError::ZeroMax {
            guest: GuestId::new(2)
        }
    );
    let poor = Claim {
        shares: Shares::new(0),
        ..claim(2, 0, 5)
    };
    assert_eq!(
        refused(SUPPLY, &[], &[poor], "guest 2: 0 shares"),
        FleetError::ZeroShares { owner }
    );
    let twice = refused(
        SUPPLY,
        &[],
        &[claim(2, 0, 5), claim(3, 0, 5), claim(2, 0, 5)],
        "guest 2: claims twice",
    );
    assert_eq!(
        twice,
        FleetError::Twice {
            guest: GuestId::new(2)
        }
    );
    refused(
        SUPPLY,
        &[],
        &[claim(2, 0, 5), claim(2, 0, 5)],
        "guest 2: claims twice",
    );
    let lost = Claim {
        group: Some(GroupId::new(1)),
        ..claim(2, 0, 5)
    };
    refused(
        SUPPLY,
        &[Group::new(Shares::NORMAL)],
        &[lost],
        "guest 2: group 1 does not exist",
    );
}

#[test]
fn sums_that_overflow() {
    refused(
        SUPPLY,
        &[],
        &[claim(1, 0, 7), claim(2, 0, u64::MAX)],
        "guest 2: 18446744073709551615 pages",
    );
    let half = Pages::LIMIT.get() / 2;
    let three = [claim(1, 0, half), claim(2, 0, half), claim(3, 0, 1)];
    let error = refused(SUPPLY, &[], &three, "guest 3: 1 pages");
    let owner = Some(Owner::Guest(GuestId::new(3)));
    assert_eq!(
        error,
        FleetError::TooLarge {
            owner,
            size: Pages::new(1),
            before: Pages::LIMIT
        }
    );
    assert!(
        Fleet::new(SUPPLY, &[], &three[..2]).is_ok(),
        "the limit itself is allowed"
    );
    let supply = Supply {
        memory: Pages::new(u64::MAX),
        ..SUPPLY
    };
    refused(
        supply,
        &[],
        &[claim(1, 0, 7)],
        "memory to hand out: 18446744073709551615 pages",
    );
}

#[test]
fn more_minimums_than_memory() {
    let claims = [claim(1, 600, 900), claim(2, 401, 900)];
    let error = uncovered(&[], &claims, "guest 2: min of 401 pages");
    let owner = Owner::Guest(GuestId::new(2));
    let (min, minimums, memory) = (Pages::new(401), Pages::new(1001), Pages::new(1000));
    assert_eq!(
        error,
        FleetError::MinimumsExceedMemory {
            owner,
            min,
            minimums,
            memory
        }
    );
    let exact = Fleet::new(SUPPLY, &[], &[claim(1, 600, 900), claim(2, 400, 900)]).expect("a fleet");
    assert_eq!(exact.covers_minimums(), Ok(()));
    // Shared pages need no private memory.
    let shared = Claim {
        shared: Pages::new(500),
        ..claim(2, 401, 900)
    };
    let fleet = Fleet::new(SUPPLY, &[], &[claim(1, 600, 900), shared]).expect("a fleet");
    assert!(fleet.covers_minimums().is_ok());
    // Every guest gets its minimum, and no page has a price.
    let fleet = Fleet::new(SUPPLY, &[], &claims).expect("a fleet");
    let plan = Plan::compute(&fleet);
    let targets: Vec<u64> = plan.targets().iter().map(|target| target.pages.get()).collect();
    assert_eq!((targets, plan.unassigned()), (vec![600, 401], Pages::ZERO));
    assert_eq!(plan.price(), None);
}

#[test]
fn groups_that_contradict_themselves() {
    let group = Group::new(Shares::NORMAL);
    let own = Group {
        min: Pages::new(5),
        max: Pages::new(4),
        ..group
    };
    refused(SUPPLY, &[own], &[], "group 0: min of 5 pages");
    refused(
        SUPPLY,
        &[Group {
            shares: Shares::new(0),
            ..group
        }],
        &[],
        "group 0: 0 shares",
    );
    let cycle = Group {
        parent: Some(GroupId::new(0)),
        ..group
    };
    refused(
        SUPPLY,
        &[cycle],
        &[],
        "group 0: group 0 does not exist or does not stand before it",
    );
    let small = Group {
        max: Pages::new(10),
        ..group
    };
    let inside = Claim {
        group: Some(GroupId::new(0)),
        ..claim(1, 11, 20)
    };
    let error = refused(
        SUPPLY,
        &[small],
        &[inside],
        "group 0: its members' minimums are 11 pages",
    );
    let (minimums, max) = (Pages::new(11), Pages::new(10));
    assert_eq!(
        error,
        FleetError::GroupTooSmall {
            group: GroupId::new(0),
            minimums,
            max
        }
    );
    let large = Group {
        min: Pages::new(2000),
        ..group
    };
    let inside = Claim {
        group: Some(GroupId::new(0)),
        ..claim(1, 0, 3000)
    };
    uncovered(&[large], &[inside], "group 0: min of 2000 pages");
}

#[test]
fn numbers_that_are_none() {
    for part in [
        1.0,
        1.5,
        -0.1,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        0.999_999_9,
    ] {
        let error = Tax::new(part).expect_err("a bad tax");
        assert!(
            error.to_string().contains(&format!("a tax of {part} ")),
            "{error}"
        );
    }
    for (fast, slow) in [
        (f64::NAN, 0.1),
        (0.5, f64::NAN),
        (0.0, 0.0),
        (1.1, 0.5),
        (0.5, 0.6),
        (0.5, -0.1),
    ] {
        let error = Gains::new(fast, slow).expect_err("bad gains");
        assert!(
            error
                .to_string()
                .contains(&format!("gains of {fast} (fast) and {slow} (slow)")),
            "{error}"
        );
    }
    assert!(Gains::from_response(0.0, 4.0).is_ok(), "at once is possible");
    assert!(
        Gains::from_response(10.0, 1.0).is_err(),
        "a rise slower than a fall is not"
    );
    for tolerated in [f64::NAN, -0.1, 1.0, 2.0] {
        assert!(
            Overbooking::new(tolerated, 1, Dependence::Unknown).is_err(),
            "{tolerated}"
        );
    }
    let levels = Levels {
        high: Pages::new(5),
        soft: Pages::new(6),
        hard: Pages::new(2),
        low: Pages::new(1),
        split: Pages::new(9),
    };
    assert!(Thresholds::new(levels, 0.1).is_err_and(|error| error.to_string().contains("must fall")));
    let levels = Levels {
        soft: Pages::new(4),
        ..levels
    };
    assert!(
        Thresholds::new(levels, f64::NAN).is_err_and(|error| error.to_string().contains("hysteresis of NaN"))
    );
    assert!(Thresholds::new(levels, 0.1).is_ok());
}

/// What is allowed although it is odd: no guests, nothing to hand out, estimates beyond the guest, sharing beyond it.
#[test]
fn odd_but_sound() {
    let none = Fleet::new(SUPPLY, &[Group::new(Shares::NORMAL)], &[]).expect("nobody");
    assert_eq!(Plan::compute(&none).unassigned(), SUPPLY.memory);
    let nothing = Supply {
        memory: Pages::ZERO,
        ..SUPPLY
    };
    let plan =
        Plan::compute(&Fleet::new(nothing, &[], &[claim(1, 0, 10), claim(2, 0, 10)]).expect("a fleet"));
    assert!(plan.targets().iter().all(|target| target.pages == Pages::ZERO));
    let odd = Claim {
        active: Pages::LIMIT,
        shared: Pages::new(u64::MAX),
        ..claim(1, 5, 10)
    };
    let plan = Plan::compute(&Fleet::new(SUPPLY, &[], &[odd]).expect("a fleet"));
    assert_eq!(plan.targets()[0].pages, Pages::ZERO);
    assert_eq!(plan.targets()[0].size, Pages::new(10));
    let equal: Vec<Claim> = (0..7).map(|id| claim(id, 0, 500)).collect();
    let plan = Plan::compute(&Fleet::new(SUPPLY, &[], &equal).expect("a fleet"));
    let pages: Vec<u64> = plan.targets().iter().map(|target| target.pages.get()).collect();
    assert_eq!(
        pages,
        [143, 143, 143, 143, 143, 143, 142],
        "ties go to whoever stands first"
    );
}
