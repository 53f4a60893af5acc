//! The paper's figure 7: what does a busy guest gain when an idle one pays a tax on its memory?
//!
//! Two equal guests, and memory for seven tenths of what both could use. One has read a file as large as three quarters
//! of its memory and rests; the other works on a set of pages that fits its memory, but not an equal share of what there
//! is. Both arms run in the same pair of guests, one after the other, in alternating order: when the tax is lifted the
//! idle guest reads its file again, and nothing is measured until both sizes have come to rest.

mod arm;
mod closed_form;
mod pair;
mod report;

use std::time::Duration;

use super::{Outcome, Params, TestbedError};
use arm::Arm;
use pair::TaxedPair;

/// Without the tax, and with the published one, in percent.
const UNTAXED: f64 = 0.0;
const TAXED: f64 = 75.0;

/// What the bench does and for how long.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    /// Pairs of arms.
    repeats: u32,
    /// Length of a sample of activity. Two thirds of the usual 30 s, to be done in a quarter of an hour.
    sample: Duration,
    /// Time between two plans at most; usually 15 s.
    rebalance: Duration,
    /// How long the busy guest is measured in each arm.
    measure: Duration,
}

impl Schedule {
    fn of(params: &Params) -> Self {
        let usual = Self {
            repeats: 3,
            sample: Duration::from_secs(20),
            rebalance: Duration::from_secs(5),
            measure: Duration::from_secs(40),
        };
        if params.quick {
            Self {
                repeats: 1,
                measure: Duration::from_secs(30),
                ..usual
            }
        } else {
            usual
        }
    }

    /// The tax of each arm: the two of a repeat change places from one repeat to the next, so that a machine that gets
    /// faster or slower favours neither.
    fn taxes(self) -> impl Iterator<Item = (u32, f64)> {
        (1..=self.repeats).flat_map(|repeat| {
            let pair = [(repeat, UNTAXED), (repeat, TAXED)];
            if repeat % 2 == 1 { pair } else { [pair[1], pair[0]] }
        })
    }
}

/// Runs the bench; `work` is what the busy guest does, as words, where it is not to read a file.
///
/// # Errors
/// When a guest does not do its work, or its data was wrong.
pub fn tax(params: &Params, work: Option<&str>) -> Result<Outcome, TestbedError> {
    let schedule = Schedule::of(params);
    let mut pair = TaxedPair::start(params, schedule, work)?;
    params.partial.set("setting", &pair.setting);
    let mut arms: Vec<Arm> = Vec::new();
    for (repeat, percent) in schedule.taxes() {
        arms.push(pair.measure(repeat, percent)?);
        params.partial.set("arms", &arms);
    }
    pair.end()?;
    Ok(report::outcome(&pair, &arms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_arms_alternates() {
        let schedule = Schedule {
            repeats: 2,
            sample: Duration::ZERO,
            rebalance: Duration::ZERO,
            measure: Duration::ZERO,
        };
        let taxes: Vec<_> = schedule.taxes().collect();
        assert_eq!(taxes, [(1, UNTAXED), (1, TAXED), (2, TAXED), (2, UNTAXED)]);
    }
}
