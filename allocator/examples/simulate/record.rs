//! What a run leaves behind: series over time and a summary per kind of guest.

use std::time::Duration;

use allocator::{FairnessMeter, FairnessReport, Pages, Portion};
use serde::Serialize;

use crate::guest::{Guest, PERIOD_S};
use crate::host::{Host, Tally};

/// Seconds between two points of a series.
pub(crate) const STEP_S: u32 = 2;
/// Within this part of its target a guest counts as having it. In the high state no guest is asked for anything, so
/// holdings come to rest above targets.
const TOLERANCE: f64 = 0.1;

/// One kind of guest at one moment, mean over its guests, in MiB.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Point {
    pub(crate) target: f64,
    pub(crate) held: f64,
    pub(crate) shared: f64,
    pub(crate) ballooned: f64,
    pub(crate) compressed: f64,
    pub(crate) swapped: f64,
    /// Really active, of its private memory.
    pub(crate) active: f64,
    /// Active by estimate.
    pub(crate) estimate: f64,
}

/// The host at one moment, in MiB.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Moment {
    pub(crate) at_s: u32,
    pub(crate) free: f64,
    pub(crate) state: &'static str,
    pub(crate) kinds: Vec<Point>,
}

/// One kind of guest over the last quarter of the run, and in all.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Kind {
    pub(crate) name: String,
    pub(crate) guests: u32,
    /// Means over the last quarter of the run, in MiB per guest.
    pub(crate) last: Point,
    /// The part of its time that it was not waiting for memory.
    pub(crate) throughput: f64,
    /// Mean over its guests.
    pub(crate) direction_changes: f64,
}

/// A guest's rise and how well the estimate had followed after two periods.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Rise {
    pub(crate) at_s: u32,
    pub(crate) truth: f64,
    pub(crate) estimate: f64,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Fairness {
    pub(crate) jain_index: f64,
    pub(crate) converged_after_s: Option<u64>,
    pub(crate) direction_changes: u32,
}

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Record {
    pub(crate) title: String,
    pub(crate) seed: u64,
    pub(crate) total_mib: f64,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) fairness: Fairness,
    pub(crate) tally: Tally,
    pub(crate) break_reserve_mib: f64,
    pub(crate) why: Vec<String>,
    pub(crate) rises: Vec<Rise>,
    pub(crate) moments: Vec<Moment>,
}

/// Collects while the host runs.
pub(crate) struct Recorder {
    sizes: Vec<u32>,
    moments: Vec<Moment>,
    fairness: FairnessMeter,
    /// The active fraction last second, and when a rise began, per guest.
    rising: Vec<(f64, Option<u32>)>,
    rises: Vec<Rise>,
}

impl Recorder {
    pub(crate) fn new(host: &Host) -> Self {
        let kinds = host.guests.last().map_or(0, |guest| guest.kind + 1);
        let mut sizes = vec![0; kinds];
        host.guests.iter().for_each(|guest| sizes[guest.kind] += 1);
        Self {
            sizes,
            moments: Vec::new(),
            fairness: FairnessMeter::new(host.guests.len(), TOLERANCE),
            rising: vec![(0.0, None); host.guests.len()],
            rises: Vec::new(),
        }
    }

    pub(crate) fn observe(&mut self, now: u32, host: &Host) {
        let portions = host
            .guests
            .iter()
            .zip(host.plan.targets())
            .map(|(_, target)| target)
            .zip(host.guests.iter().map(|guest| guest.claim().holding.held))
            .map(|(target, held)| Portion {
                entitled: target.pages,
                held,
            });
        self.fairness
            .observe(Duration::from_secs(u64::from(now)), portions);
        for (guest, rising) in host.guests.iter().zip(&mut self.rising) {
            self.rises.extend(follow_rise(now, guest, rising));
        }
        if now % STEP_S == 0 {
            self.moments.push(self.moment(now, host));
        }
    }

    fn moment(&self, now: u32, host: &Host) -> Moment {
        let mut kinds = vec![Point::default(); self.sizes.len()];
        for (guest, target) in host.guests.iter().zip(host.plan.targets()) {
            kinds[guest.kind].add(
                &point(guest, target.pages.mib()),
                1.0 / f64::from(self.sizes[guest.kind]),
            );
        }
        Moment {
            at_s: now,
            free: host.free() as f64 / 256.0,
            state: host.state().name(),
            kinds,
        }
    }

    pub(crate) fn finish(self, title: &str, seed: u64, host: &mut Host) -> Record {
        let report = self.fairness.report();
        let last = &self.moments[self.moments.len() * 3 / 4..];
        let seconds = f64::from(self.moments.last().map_or(0, |moment| moment.at_s) + 1);
        let kinds = (0..self.sizes.len()).map(|kind| {
            let mut mean = Point::default();
            last.iter()
                .for_each(|moment| mean.add(&moment.kinds[kind], 1.0 / last.len() as f64));
            summary(host, &report, kind, (mean, seconds))
        });
        let kinds = kinds.collect();
        let why = (0..self.sizes.len()).filter_map(|kind| {
            let first = host.guests.iter().position(|guest| guest.kind == kind)?;
            let why = host.explain(first)?;
            Some(format!("{}: {why}", host.guests[first].name))
        });
        let why = why.collect();
        Record {
            title: title.to_owned(),
            seed,
            total_mib: host.total as f64 / 256.0,
            kinds,
            fairness: Fairness {
                jain_index: report.jain,
                converged_after_s: report.converged_after.map(|after| after.as_secs()),
                direction_changes: report.direction_changes.iter().sum(),
            },
            tally: host.tally,
            break_reserve_mib: host.break_reserve().mib(),
            why,
            rises: self.rises,
            moments: self.moments,
        }
    }
}

fn summary(host: &Host, report: &FairnessReport, kind: usize, (last, seconds): (Point, f64)) -> Kind {
    let guests: Vec<(usize, &Guest)> = host
        .guests
        .iter()
        .enumerate()
        .filter(|(_, guest)| guest.kind == kind)
        .collect();
    let count = guests.len() as f64;
    let lost: f64 = guests.iter().map(|(_, guest)| guest.lost_sum).sum();
    let turns: u32 = guests
        .iter()
        .map(|(index, _)| report.direction_changes[*index])
        .sum();
    let first = guests[0].1;
    Kind {
        name: first.name.trim_end_matches("-0").to_owned(),
        guests: guests.len() as u32,
        last,
        throughput: 1.0 - lost / (count * seconds * 1e6),
        direction_changes: f64::from(turns) / count,
    }
}

fn point(guest: &Guest, target: f64) -> Point {
    let mib = |pages: u64| pages as f64 / 256.0;
    Point {
        target,
        held: mib(guest.charged()),
        shared: mib(guest.place.shared),
        ballooned: mib(guest.balloon),
        compressed: mib(guest.place.compressed),
        swapped: mib(guest.place.swapped),
        active: mib(guest.place.held) * guest.active_fraction(),
        estimate: guest.claim().active.mib(),
    }
}

/// Two periods after a guest's active fraction rose, and did not change since: truth and estimate.
fn follow_rise(now: u32, guest: &Guest, rising: &mut (f64, Option<u32>)) -> Option<Rise> {
    let truth = guest.active_fraction();
    let (before, since) = *rising;
    let changed = (truth - before).abs() > 0.01;
    rising.0 = truth;
    if changed {
        rising.1 = (truth > before && now > 2 * PERIOD_S).then_some(now);
        return None;
    }
    let at_s = since.filter(|since| now - since == 2 * PERIOD_S)?;
    let private = Pages::new(guest.place.held);
    Some(Rise {
        at_s,
        truth,
        estimate: guest.estimator.estimate(private, &[]).fraction,
    })
}

impl Point {
    fn add(&mut self, other: &Self, weight: f64) {
        self.target += other.target * weight;
        self.held += other.held * weight;
        self.shared += other.shared * weight;
        self.ballooned += other.ballooned * weight;
        self.compressed += other.compressed * weight;
        self.swapped += other.swapped * weight;
        self.active += other.active * weight;
        self.estimate += other.estimate * weight;
    }
}
