//! A run as a table for people.

use std::fmt;

use anyhow::Result;
use serde::Serialize;

use crate::Gain;
use crate::fleet_file::FleetFile;
use crate::record::{Kind, Record};

/// Prints `record`, and what each kind of guest gains by cheating.
pub(crate) fn print(record: &Record, gains: &[Option<Gain>]) {
    println!(
        "{}  (seed {}, host of {:.0} MiB)",
        record.title, record.seed, record.total_mib
    );
    println!(
        "{:<14} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7} {:>6}{}",
        "MiB per guest",
        "guests",
        "target",
        "holds",
        "shared",
        "balloon",
        "zip",
        "swap",
        "active",
        "believed",
        "speed",
        "turns",
        if gains.iter().all(Option::is_none) {
            ""
        } else {
            "  +target   +holds"
        }
    );
    for (index, kind) in record.kinds.iter().enumerate() {
        print_kind(kind, gains.get(index).copied().flatten());
    }
    let (tally, fairness) = (&record.tally, &record.fairness);
    println!(
        "seconds high {} soft {} hard {} low {}; {} state changes; pages ballooned {} shared {} compressed {} swapped \
         {}, shares broken {}",
        tally.seconds[0],
        tally.seconds[1],
        tally.seconds[2],
        tally.seconds[3],
        tally.state_changes,
        tally.ballooned,
        tally.shared,
        tally.compressed,
        tally.swapped,
        tally.broken
    );
    let converged = fairness
        .converged_after_s
        .map_or("never".to_owned(), |after| format!("after {after} s"));
    println!(
        "Jain index {:.4}, within 10 % of all targets for good: {converged}, direction changes {}, break reserve {:.1} MiB",
        fairness.jain_index, fairness.direction_changes, record.break_reserve_mib
    );
    for why in &record.why {
        println!("  {why}");
    }
}

fn print_kind(kind: &Kind, gain: Option<Gain>) {
    let last = &kind.last;
    print!(
        "{:<14} {:>6} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>6.1}% {:>6.1}",
        kind.name,
        kind.guests,
        last.target,
        last.held,
        last.shared,
        last.ballooned,
        last.compressed,
        last.swapped,
        last.active,
        last.estimate,
        kind.throughput * 100.0,
        kind.direction_changes
    );
    if let Some(gain) = gain {
        print!(" {:>+7.1}% {:>+7.1}%", gain.target * 100.0, gain.held * 100.0);
    }
    println!();
}

/// How estimates followed rises, over many seeds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Rises {
    seeds: u64,
    rises: usize,
    /// Rises two periods after which the estimate was within 10 points of the truth.
    within_10_points: usize,
    /// Seeds in which all rises were.
    seeds_within_10_points: u64,
    worst_points: f64,
}

impl Rises {
    /// Runs `fleet` with `count` seeds.
    pub(crate) fn over(fleet: &FleetFile, count: u64) -> Result<Self> {
        let mut all = Self {
            seeds: count,
            rises: 0,
            within_10_points: 0,
            seeds_within_10_points: 0,
            worst_points: 0.0,
        };
        eprintln!("following rises over {count} seeds");
        for seed in fleet.seed..fleet.seed + count {
            let rises = crate::run(fleet, seed)?.rises;
            let errors = rises
                .iter()
                .map(|rise| (rise.estimate - rise.truth).abs() * 100.0);
            let near = errors.clone().filter(|&error| error <= 10.0).count();
            all.rises += rises.len();
            all.within_10_points += near;
            all.seeds_within_10_points += u64::from(near == rises.len());
            all.worst_points = errors.fold(all.worst_points, f64::max);
        }
        Ok(all)
    }
}

impl fmt::Display for Rises {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} seeds: two periods after {} rises the estimate was within 10 points {} times ({:.1} %); all rises of a \
             seed in {} of {} seeds; worst {:.1} points",
            self.seeds,
            self.rises,
            self.within_10_points,
            100.0 * self.within_10_points as f64 / self.rises.max(1) as f64,
            self.seeds_within_10_points,
            self.seeds,
            self.worst_points
        )
    }
}
