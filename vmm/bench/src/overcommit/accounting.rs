//! What a second-by-second account says about a budget and about promises.

use serde::Serialize;

use crate::sample::curve;
use crate::{Figure, GuestSample, Line, Panel, Sample};

/// What is not counted as a breach: the manager samples too, and guests move between its sample and ours.
const TOLERANCE: f64 = 0.02;

/// When a sample counts a guest as below its minimum. One that has not touched so much yet, or gave it back itself, has
/// been refused nothing; one from which something was taken counts, booting or not.
const SHORT: &str = "private, shared and zero pages and the bytes of the compressed store fall short of the minimum by more than 2 % \
                     of it, and so much was taken by balloon, compression or swap";

/// Verdicts over a testbed's samples.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Accounting {
    /// Samples looked at.
    pub samples: usize,
    /// Of those, samples with more than 2 % above the budget in use.
    pub budget_exceeded_samples: usize,
    /// Most memory in use, as a part of the budget.
    pub most_of_budget: f64,
    /// Samples of single guests in which one lacked something that was promised to it.
    pub below_minimum_samples: usize,
    /// When a sample counts, for readers of the numbers.
    pub below_minimum_means: &'static str,
    /// Samples by the host's state: high, soft, hard, low.
    pub states: [usize; 4],
}

impl Accounting {
    /// The account of `samples`, of guests that were promised `min_bytes` each.
    pub fn of(samples: &[Sample], min_bytes: u64) -> Self {
        let part = |sample: &Sample| sample.used_bytes as f64 / sample.budget_bytes.max(1) as f64;
        let guests = samples.iter().flat_map(|sample| &sample.guests);
        let in_state = |name: &str| {
            samples
                .iter()
                .filter(|s| s.state.as_deref() == Some(name))
                .count()
        };
        Self {
            samples: samples.len(),
            budget_exceeded_samples: samples.iter().filter(|s| part(s) > 1.0 + TOLERANCE).count(),
            most_of_budget: samples.iter().map(part).fold(0.0, f64::max),
            below_minimum_samples: guests.filter(|guest| is_short(guest, min_bytes)).count(),
            below_minimum_means: SHORT,
            states: ["high", "soft", "hard", "low"].map(in_state),
        }
    }
}

/// Whether a guest lacks something that was promised to it: it has less than its minimum, what its compressed pages
/// occupy included, and some of the rest was taken away rather than never wanted.
fn is_short(guest: &GuestSample, min_bytes: u64) -> bool {
    let has = guest.resident_bytes + guest.memory.store_bytes;
    let taken = guest.memory.ballooned_bytes + guest.memory.compressed_bytes + guest.memory.swapped_bytes;
    // Pages may be on their way while they are counted.
    has + min_bytes / 50 < min_bytes.min(has + taken)
}

/// Memory over time: the budget and what is used of it, then what each guest holds, then where the rest is.
pub fn figure(title: &str, samples: &[Sample]) -> Figure {
    let host =
        |name: &str, of: fn(&Sample) -> u64| Line::new(name, curve(samples, |sample| Some(of(sample))));
    let sum = |name: &str, of: fn(&GuestSample) -> u64| {
        let of = |sample: &Sample| Some(sample.guests.iter().map(of).sum());
        Line::new(name, curve(samples, of))
    };
    let mut names: Vec<&str> = Vec::new();
    for guest in samples.iter().flat_map(|sample| &sample.guests) {
        if !names.contains(&guest.name.as_str()) {
            names.push(&guest.name);
        }
    }
    let held = names.iter().map(|name| {
        let of = |sample: &Sample| Some(sample.guest(name)?.held_bytes);
        Line::new(*name, curve(samples, of))
    });
    Figure {
        title: title.to_owned(),
        x: "seconds".into(),
        panels: vec![
            Panel {
                y: "host, MiB".into(),
                lines: vec![
                    host("budget", |sample| sample.budget_bytes),
                    host("used", |sample| sample.used_bytes),
                    host("pools", |sample| sample.pools_bytes),
                ],
            },
            Panel {
                y: "held by guest, MiB".into(),
                lines: held.collect(),
            },
            Panel {
                y: "all guests, MiB".into(),
                lines: vec![
                    sum("private", |guest| guest.memory.private_bytes),
                    sum("shared and zero", |guest| {
                        guest.memory.shared_bytes + guest.memory.zero_bytes
                    }),
                    sum("ballooned", |guest| guest.memory.ballooned_bytes),
                    sum("compressed", |guest| guest.memory.compressed_bytes),
                    sum("swapped", |guest| guest.memory.swapped_bytes),
                    sum("active", |guest| guest.active_bytes),
                ],
            },
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use levy_protocol::api::MemoryView;

    const MIB: u64 = 1 << 20;

    fn guest(resident: u64, ballooned: u64) -> GuestSample {
        GuestSample {
            name: "a".into(),
            resident_bytes: resident * MIB,
            memory: MemoryView {
                ballooned_bytes: ballooned * MIB,
                ..MemoryView::default()
            },
            ..GuestSample::default()
        }
    }

    fn sample(used: u64, guest: GuestSample) -> Sample {
        Sample {
            seconds: 1.0,
            state: Some("low".into()),
            budget_bytes: 100 * MIB,
            used_bytes: used * MIB,
            pools_bytes: 0,
            manager_bytes: 0,
            guests: vec![guest],
        }
    }

    #[test]
    fn two_percent_more_are_a_breach_and_a_guest_that_never_wanted_more_is_not_short() {
        let samples = [
            sample(102, guest(10, 0)),
            sample(103, guest(64, 64)),
            sample(50, guest(40, 64)),
            // One that boots: what was taken of it counts, from 2 % of its minimum on.
            sample(50, guest(40, 2)),
            sample(50, guest(40, 1)),
        ];
        let accounting = Accounting::of(&samples, 64 * MIB);
        assert_eq!(
            (
                accounting.budget_exceeded_samples,
                accounting.below_minimum_samples
            ),
            (1, 2)
        );
        assert_eq!(accounting.states, [0, 0, 0, 5]);
        assert!((accounting.most_of_budget - 1.03).abs() < 1e-9);
        assert_eq!(figure("", &samples).panels[1].lines[0].points.len(), 5);
    }
}
