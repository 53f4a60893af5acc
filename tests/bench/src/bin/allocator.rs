//! How long one plan takes, and one estimator update.
//!
//! A plan is timed from claims to targets: [`Fleet::new`] checks and lays out, [`Planner::plan`] divides. Its rival is
//! the textbook answer to a simpler question, one flat pool: it sorts all bends of the closed form in floating point
//! and sweeps them. The page-by-page definition is timed where it ends within the run.
#![forbid(unsafe_code)]

use std::collections::BinaryHeap;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use allocator::{
    Claim, Estimator, Fleet, Group, GroupId, GuestId, Pages, Plan, Planner, Sample, Shares, Supply, Tax,
};
use clap::Parser;
use levy_bench::{Random, Report, Samples};

#[derive(Parser)]
#[command(about = "Plans for 100 to 100,000 guests in groups, and estimator updates")]
struct Args {
    /// Write the report to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Guests per fleet.
const SIZES: [usize; 4] = [100, 1_000, 10_000, 100_000];

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut report = Report::new("allocator");
    println!("   guests      plan ms  of it check     ns/guest  sort+sweep ms   by page ms");
    for guests in SIZES {
        plans(guests, &mut report);
    }
    println!(
        "fleets that are hard to search, ms a plan: all equal / sizes and shares over 30 binary orders, largest tax"
    );
    for guests in SIZES {
        hard_plans(guests, &mut report);
    }
    estimators(&mut report);
    Ok(report.write(args.json.as_deref())?)
}

/// A fleet before it is checked.
struct Parts {
    supply: Supply,
    groups: Vec<Group>,
    claims: Vec<Claim>,
}

/// Mixed guests of 256 MiB to 16 GiB, one group per 20 of them, half of the groups inside others, a quarter of the
/// guests in none, memory for half of all maximums.
fn parts(guests: usize) -> Parts {
    let mut random = Random::new(42);
    let groups: Vec<Group> = (0..guests / 20)
        .map(|index| Group {
            parent: (index % 2 == 1).then(|| GroupId::new(index as u32 - 1)),
            tax: (index % 3 == 0).then(|| Tax::new(0.5).expect("a tax")),
            ..Group::new(Shares::new(1 + random.below(4_000) as u32))
        })
        .collect();
    let claims: Vec<Claim> = (0..guests)
        .map(|id| {
            let max = 65_536 + random.below(4_128_768);
            let group = random.below(groups.len() as u64) as u32;
            Claim {
                group: (random.below(4) > 0).then(|| GroupId::new(group)),
                active: Pages::new(random.below(max)),
                shared: Pages::new(random.below(max / 4)),
                ..Claim::new(
                    GuestId::new(id as u64),
                    Pages::new(random.below(max / 4)),
                    Pages::new(max),
                    Shares::new(500 + random.below(1_500) as u32),
                )
            }
        })
        .collect();
    let most: Pages = claims.iter().map(|claim| claim.max).sum();
    let supply = Supply {
        memory: most.part(0.5),
        tax: Tax::DEFAULT,
    };
    Parts {
        supply,
        groups,
        claims,
    }
}

fn plans(guests: usize, report: &mut Report) {
    let Parts {
        supply,
        groups,
        claims,
    } = parts(guests);
    let rounds = (2_000_000 / guests).clamp(5, 2_000);
    let (mut planner, mut plan) = (Planner::default(), Plan::default());
    let (mut whole, mut check, mut rival) = (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..rounds {
        let start = Instant::now();
        let fleet = Fleet::new(supply, &groups, black_box(&claims)).expect("a valid fleet");
        check.push(start.elapsed().as_secs_f64() * 1e3);
        planner.plan(&fleet, &mut plan);
        whole.push(start.elapsed().as_secs_f64() * 1e3);
        black_box(plan.targets());
        let start = Instant::now();
        black_box(sort_and_sweep(supply, black_box(&claims)));
        rival.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let by_page = (guests <= 100).then(|| {
        let start = Instant::now();
        black_box(page_by_page(supply, &claims));
        start.elapsed().as_secs_f64() * 1e3
    });
    let [plan_ms, check_ms, rival_ms] = [&whole, &check, &rival].map(|samples| samples.median().median);
    let per_guest = plan_ms * 1e6 / guests as f64;
    let by_page_text = by_page.map_or("-".to_owned(), |ms| format!("{ms:.0}"));
    println!(
        "{guests:>9} {plan_ms:>12.4} {check_ms:>12.4} {per_guest:>12.0} {rival_ms:>14.4} {by_page_text:>12}"
    );
    report.set(&format!("plan_ms.{guests}"), plan_ms);
    report.set(&format!("plan_ms_interval.{guests}"), whole.median());
    report.set(&format!("plan_ms_p99.{guests}"), whole.quantile(0.99));
    report.set(&format!("check_ms.{guests}"), check_ms);
    report.set(&format!("plan_ns_per_guest.{guests}"), per_guest);
    report.set(&format!("sort_and_sweep_ms.{guests}"), rival_ms);
    if let Some(ms) = by_page {
        report.set(&format!("page_by_page_ms.{guests}"), ms);
    }
}

/// One flat pool where all guests tie for every page, and one whose prices spread as far as prices can.
fn hard_plans(guests: usize, report: &mut Report) {
    let mut random = Random::new(3);
    let claim = |id: usize, max: u64, shares: u32| Claim {
        active: Pages::new(max / 2),
        ..Claim::new(
            GuestId::new(id as u64),
            Pages::ZERO,
            Pages::new(max),
            Shares::new(shares),
        )
    };
    let equal: Vec<Claim> = (0..guests).map(|id| claim(id, 65_536, 1_000)).collect();
    // The largest sizes whose sum stays within what a fleet may be.
    let most = ((1_u64 << 40) / guests as u64).ilog2().min(30);
    let wild: Vec<Claim> = (0..guests)
        .map(|id| claim(id, 1 << random.below(u64::from(most) + 1), 1 << random.below(32)))
        .collect();
    let times = [(equal, Tax::DEFAULT), (wild, Tax::MAX)].map(|(claims, tax)| {
        let most: Pages = claims.iter().map(|claim| claim.max).sum();
        let supply = Supply {
            memory: Pages::new(most.get() / 3 + 1),
            tax,
        };
        let (mut planner, mut plan) = (Planner::default(), Plan::default());
        let rounds = (500_000 / guests).clamp(5, 500);
        let samples: Samples = (0..rounds)
            .map(|_| {
                let start = Instant::now();
                let fleet = Fleet::new(supply, &[], black_box(&claims)).expect("a valid fleet");
                planner.plan(&fleet, &mut plan);
                start.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        samples.median().median
    });
    println!("{guests:>9} {:>12.4} {:>12.4}", times[0], times[1]);
    report.set(&format!("plan_ms_equal.{guests}"), times[0]);
    report.set(&format!("plan_ms_wild.{guests}"), times[1]);
}

/// The rival: one flat pool, all bends sorted, swept with a running slope. Neither exact nor grouped.
fn sort_and_sweep(supply: Supply, claims: &[Claim]) -> Vec<f64> {
    let k = supply.tax.idle_cost();
    let cost = |claim: &Claim, pages: f64| {
        let active = (claim.active.get() as f64).min(pages);
        (active + k * (pages - active)) / f64::from(claim.shares.get())
    };
    let limits = |claim: &Claim| {
        let max = (claim.max - claim.shared).get() as f64;
        ((claim.min.get() as f64).min(max), max)
    };
    let mut bends = Vec::with_capacity(3 * claims.len());
    let mut sum = 0.0;
    for claim in claims {
        let (min, max) = limits(claim);
        let active = (claim.active.get() as f64).clamp(min, max);
        let shares = f64::from(claim.shares.get());
        sum += min;
        bends.push((cost(claim, min), if active > min { shares } else { shares / k }));
        if active > min && active < max {
            bends.push((cost(claim, active), shares / k - shares));
        }
        bends.push((cost(claim, max), if active < max { -shares / k } else { -shares }));
    }
    bends.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut level, mut slope) = (0.0, 0.0);
    let memory = supply.memory.get() as f64;
    for (at, change) in bends {
        let next = sum + slope * (at - level);
        if next > memory {
            level += (memory - sum) / slope;
            break;
        }
        (sum, level) = (next, at);
        slope += change;
    }
    let afford = |claim: &Claim| {
        let (money, active) = (level * f64::from(claim.shares.get()), claim.active.get() as f64);
        let (min, max) = limits(claim);
        let pages = if money <= active {
            money
        } else {
            active + (money - active) / k
        };
        pages.clamp(min, max)
    };
    claims.iter().map(afford).collect()
}

/// The definition: a page at a time from the guest with the fewest adjusted shares per page, by a heap.
fn page_by_page(supply: Supply, claims: &[Claim]) -> Vec<u64> {
    let k = supply.tax.idle_cost();
    let cost_per_share = |claim: &Claim, pages: u64| {
        let active = pages.min(claim.active.get());
        let cost = active as f64 + k * (pages - active) as f64;
        // The bits of a number that is not negative sort as it does.
        (cost / f64::from(claim.shares.get())).to_bits()
    };
    let mut held: Vec<u64> = claims
        .iter()
        .map(|claim| (claim.max - claim.shared).get())
        .collect();
    let mut heap: BinaryHeap<(u64, usize)> = claims
        .iter()
        .enumerate()
        .map(|(i, claim)| (cost_per_share(claim, held[i]), i))
        .collect();
    for _ in supply.memory.get()..held.iter().sum() {
        let Some((_, poorest)) = heap.pop() else { break };
        held[poorest] -= 1;
        let claim = &claims[poorest];
        if held[poorest] > claim.min.get() {
            heap.push((cost_per_share(claim, held[poorest]), poorest));
        }
    }
    held
}

/// One period closed for each of many guests in turn, and one estimate with its interval.
fn estimators(report: &mut Report) {
    let mut estimators = vec![Estimator::default(); 10_000];
    let mut random = Random::new(7);
    let samples: Vec<Sample> = (0..1_024)
        .map(|_| Sample::new(random.below(101) as u32, 100))
        .collect();
    let (mut update, mut estimate) = (Samples::default(), Samples::default());
    for round in 0..200_usize {
        let per_guest = |start: Instant| start.elapsed().as_secs_f64() * 1e9 / 10_000.0;
        let start = Instant::now();
        for (i, estimator) in estimators.iter_mut().enumerate() {
            let sample = samples[(i + round) % samples.len()];
            estimator.run(sample);
            estimator.close_period(sample);
        }
        update.push(per_guest(start));
        let start = Instant::now();
        for estimator in &estimators {
            black_box(estimator.estimate(Pages::new(65_536), &[]));
        }
        estimate.push(per_guest(start));
    }
    let (update, estimate) = (update.median(), estimate.median());
    println!(
        "estimator: running count and period {:.1} ns, estimate with interval {:.1} ns",
        update.median, estimate.median
    );
    report.set("estimator_update_ns", update.median);
    report.set("estimator_update_ns_interval", update);
    report.set("estimate_ns", estimate.median);
}
