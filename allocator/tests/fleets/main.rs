//! Properties of plans, on random fleets.
//!
//! Ordinary runs take [`CASES`] fleets per property; `PROPTEST_CASES=1000000 cargo test --release -p levy-allocator --test
//! fleets` takes a million. Failing seeds are kept in `regressions.txt` beside this file and run first ever after.

mod case;
mod oracle;

use allocator::{Claim, Fleet, GroupId, Pages, Plan, Planner, Shares, Supply, Tax};
use case::{Case, case};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// Fleets per property in ordinary runs.
const CASES: u32 = 100_000;

fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(CASES),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/fleets/regressions.txt",
        ))),
        ..ProptestConfig::default()
    }
}

fn pages(plan: &Plan) -> Vec<u64> {
    plan.targets().iter().map(|target| target.pages.get()).collect()
}

fn replan(fleet: &Fleet, supply: Supply, claims: &[Claim]) -> Vec<u64> {
    pages(&Plan::compute(
        &Fleet::new(supply, fleet.groups(), claims).expect("a valid variation"),
    ))
}

/// Without groups; `groups` of the case is empty.
fn flat(guests: usize, max: u64) -> impl Strategy<Value = Case> {
    case(guests, 0, max)
}

/// The real-valued closed form at the price that clears a pool, by bisection.
fn closed_form(clients: &[oracle::Client], tax: Tax, memory: u64) -> Vec<f64> {
    let k = tax.idle_cost();
    let at = |x: f64, client: &oracle::Client| {
        let (afford, active) = (client.shares as f64 * x, client.active as f64);
        let pages = if afford <= active {
            afford
        } else {
            active + (afford - active) / k
        };
        pages.clamp(client.min as f64, client.max as f64)
    };
    let (mut low, mut high) = (0.0, 1e15);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        let sum: f64 = clients.iter().map(|client| at(middle, client)).sum();
        if sum <= memory as f64 {
            low = middle;
        } else {
            high = middle;
        }
    }
    clients.iter().map(|client| at(low, client)).collect()
}

/// That no page could move within `pool` to a member that values it more: this alone determines the plan.
fn check_pool(fleet: &Fleet, plan: &Plan, pool: Option<GroupId>) -> Result<(), TestCaseError> {
    let oracle::Members {
        guests,
        groups,
        clients,
    } = oracle::members(fleet, pool);
    let tax = oracle::tax_in(fleet, pool);
    let guests = guests.iter().map(|&i| plan.targets()[i].pages.get());
    let held: Vec<u64> = guests
        .chain(groups.iter().map(|&i| plan.groups()[i].pages.get()))
        .collect();
    let dearest = (0..held.len()).filter(|&i| held[i] > clients[i].min);
    let cheapest: Vec<usize> = (0..held.len()).filter(|&i| held[i] < clients[i].max).collect();
    for i in dearest {
        for &j in cheapest.iter().filter(|&&j| j != i) {
            let last = clients[i].cost(held[i], tax) * u128::from(clients[j].shares);
            let next = clients[j].cost(held[j] + 1, tax) * u128::from(clients[i].shares);
            prop_assert!(
                last < next || (last == next && i < j),
                "{i} holds a page that {j} values more"
            );
        }
    }
    for &group in &groups {
        check_pool(fleet, plan, Some(GroupId::new(group as u32)))?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    /// The price search finds what revocation finds, to the page; sums and limits hold.
    #[test]
    fn equals_the_oracle(case in case(8, 4, 120)) {
        let fleet = case.fleet();
        let plan = Plan::compute(&fleet);
        let targets = pages(&plan);
        prop_assert_eq!(&targets, &oracle::targets(&fleet));
        let most = oracle::members(&fleet, None).clients.iter().map(|client| client.max).sum::<u64>();
        let memory = fleet.supply().memory.get();
        prop_assert_eq!(targets.iter().sum::<u64>(), memory.min(most));
        prop_assert_eq!(plan.unassigned().get(), memory.saturating_sub(most));
        for (claim, target) in fleet.claims().iter().zip(plan.targets()) {
            let max = claim.max - claim.shared;
            prop_assert!(claim.min.less(claim.shared) <= target.pages && target.pages <= max);
            prop_assert_eq!(target.size, target.pages + claim.shared);
        }
        for (group, target) in fleet.groups().iter().zip(plan.groups()) {
            prop_assert!(target.pages <= group.max);
        }
    }

    /// Sizes up to the limit of what a fleet may be, where the oracle cannot go.
    #[test]
    fn no_page_is_worth_more_elsewhere(case in case(12, 4, 1 << 36)) {
        let fleet = case.fleet();
        let plan = Plan::compute(&fleet);
        let most = oracle::members(&fleet, None).clients.iter().map(|client| client.max).sum::<u64>();
        prop_assert_eq!(pages(&plan).iter().sum::<u64>(), fleet.supply().memory.get().min(most));
        check_pool(&fleet, &plan, None)?;
    }

    /// No guest gets less than the real-valued closed form rounded down, or more than n - 1 pages above it.
    #[test]
    fn keeps_the_closed_form(case in flat(8, 4000)) {
        let fleet = case.fleet();
        let clients = oracle::members(&fleet, None).clients;
        let real = closed_form(&clients, fleet.supply().tax, fleet.supply().memory.get());
        for (real, got) in real.iter().zip(pages(&Plan::compute(&fleet))) {
            prop_assert!(got as f64 > real - 1.0 - 1e-3, "{got} pages of {real}");
            prop_assert!((got as f64) < real + clients.len() as f64 + 1e-3, "{got} pages of {real}");
        }
    }

    /// More tax never helps the guest with the least active memory per share.
    #[test]
    fn more_tax_never_helps_the_idlest(case in flat(8, 400), more in 0..1_000_000_u32) {
        let fleet = case.fleet();
        let claims = fleet.claims();
        let clients = oracle::members(&fleet, None).clients;
        let idlest = (0..clients.len())
            .min_by(|&i, &j| {
                let (a, b) = (&clients[i], &clients[j]);
                (a.active * b.shares).cmp(&(b.active * a.shares))
            })
            .expect("a fleet has guests");
        let more = Tax::new(f64::from(more.max(case.tax)) / 1e6).expect("below 1");
        let before = case.plan().targets()[idlest].pages.get();
        let after = replan(&fleet, Supply { tax: more, ..fleet.supply() }, claims)[idlest];
        prop_assert!(after <= before + 1, "{before} pages before, {after} after");
    }

    /// More shares never shrink their owner, in groups or not.
    #[test]
    fn more_shares_never_hurt(case in case(8, 3, 400), which: prop::sample::Index, more in 1..1000_u32) {
        let fleet = case.fleet();
        let mut claims = fleet.claims().to_vec();
        let claim = which.get_mut(&mut claims);
        claim.shares = Shares::new(claim.shares.get().saturating_add(more));
        let guest = claim.guest.get() as usize;
        let before = case.plan().targets()[guest].pages.get();
        let after = replan(&fleet, fleet.supply(), &claims)[guest];
        prop_assert!(after >= before, "{before} pages before, {after} after");
    }

    /// Removing a guest shrinks no other.
    #[test]
    fn removal_shrinks_nobody(case in flat(8, 400), which: prop::sample::Index) {
        let fleet = case.fleet();
        let mut claims = fleet.claims().to_vec();
        let removed = which.index(claims.len());
        claims.remove(removed);
        let mut before = pages(&case.plan());
        before.remove(removed);
        for (before, after) in before.iter().zip(replan(&fleet, fleet.supply(), &claims)) {
            prop_assert!(after >= *before, "{before} pages before, {after} after");
        }
    }

    /// Shares have no unit: any multiple of all gives the same plan, to the page.
    #[test]
    fn shares_have_no_unit(case in case(8, 3, 400), factor in 1..1000_u32) {
        let mut scaled = case.clone();
        let most = case.guests.iter().map(|guest| guest.shares).chain(case.groups.iter().map(|pool| pool.shares));
        let factor = factor.min(u32::MAX / most.max().unwrap_or(1)).max(1);
        scaled.guests.iter_mut().for_each(|guest| guest.shares *= factor);
        scaled.groups.iter_mut().for_each(|pool| pool.shares *= factor);
        prop_assert_eq!(pages(&case.plan()), pages(&scaled.plan()));
    }

    /// Pages have no unit: c times everything gives c times the targets, up to the rounding of the smaller fleet.
    #[test]
    fn pages_have_no_unit(case in flat(8, 4000), factor in 2..1000_u64) {
        let fleet = case.fleet();
        let times = |pages: Pages| Pages::new(pages.get() * factor);
        let claims: Vec<Claim> = fleet.claims().iter().map(|claim| Claim {
            min: times(claim.min),
            max: times(claim.max),
            active: times(claim.active),
            shared: times(claim.shared),
            ..*claim
        }).collect();
        let supply = Supply { memory: times(fleet.supply().memory), ..fleet.supply() };
        let slack = (claims.len() as u64 + 1) * (factor + 1);
        for (before, after) in pages(&case.plan()).into_iter().zip(replan(&fleet, supply, &claims)) {
            prop_assert!((before * factor).abs_diff(after) <= slack, "{factor} x {before} pages became {after}");
        }
    }

    /// Pretending to be active, which a guest can by touching all its memory, wins back the tax and no more: at most k
    /// times what honesty would have brought.
    #[test]
    fn pretending_wins_back_the_tax_at_most(case in flat(8, 400), which: prop::sample::Index) {
        let fleet = case.fleet();
        let mut claims = fleet.claims().to_vec();
        let claim = which.get_mut(&mut claims);
        claim.active = claim.max;
        let guest = claim.guest.get() as usize;
        let honest = case.plan().targets()[guest].pages.get();
        let pretending = replan(&fleet, fleet.supply(), &claims)[guest];
        prop_assert!(pretending >= honest);
        let most = (honest + 1) as f64 * fleet.supply().tax.idle_cost();
        prop_assert!(pretending as f64 <= most + 1e-6, "{honest} pages became {pretending}");
    }

    /// A planner that planned something else before plans the same.
    #[test]
    fn planners_carry_nothing_over(first in case(8, 4, 400), second in case(8, 4, 400)) {
        let (mut planner, mut plan) = (Planner::default(), Plan::default());
        planner.plan(&first.fleet(), &mut plan);
        planner.plan(&second.fleet(), &mut plan);
        prop_assert_eq!(plan, second.plan());
    }
}
