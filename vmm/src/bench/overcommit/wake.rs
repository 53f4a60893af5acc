//! How long does a guest that was squeezed to its minimum take to be itself again?
//!
//! It touches a working set for a while, alone; then it rests, while another guest takes all there is; then it touches
//! its working set again, as soon as the other rests.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::figure;
use crate::bench::actor::Tick;
use crate::bench::{GuestSample, Outcome, Report, Sample, Scene, Stage, StageError};
use crate::cli::GuestArgs;

/// The part of its undisturbed throughput at which a guest is itself again.
const AWAKE: f64 = 0.95;

/// What the bench does; seconds by the guest's schedule.
#[derive(Clone, Copy, Debug, Serialize)]
struct Schedule {
    size_mib: u64,
    budget_mib: u64,
    working_set_mib: u64,
    undisturbed: u64,
    asleep: u64,
    awake: u64,
}

const FULL: Schedule = Schedule {
    size_mib: 256,
    budget_mib: 416,
    working_set_mib: 128,
    undisturbed: 40,
    asleep: 150,
    awake: 90,
};

const QUICK: Schedule = Schedule {
    undisturbed: 15,
    asleep: 60,
    awake: 40,
    ..FULL
};

/// What was found. Times are seconds.
#[derive(Clone, Debug, Serialize)]
struct Wake {
    /// Touches per second before.
    undisturbed_rate: f64,
    /// What it held when it woke, and what of it was away.
    resident_mib: u64,
    squeezed_mib: u64,
    ballooned_mib: u64,
    /// Until the first second with 95 % of its throughput; none if that never came.
    seconds_to_95_percent: Option<f64>,
    /// Most pages brought back from compression and swap in one second, and in all until then.
    pages_in_per_second: u64,
    pages_in: u64,
    /// Until its balloon was asked for less.
    seconds_to_release: Option<f64>,
}

/// Runs the bench.
///
/// # Errors
/// When a guest does not do its work, or its data was wrong.
pub fn wake(scene: &Scene) -> Result<Outcome, StageError> {
    let plan = if scene.quick { QUICK } else { FULL };
    let mut stage = Stage::open(scene, scene.settings(plan.budget_mib << 20))?;
    let args = GuestArgs {
        memory: format!("size={}M", plan.size_mib)
            .parse()
            .map_err(|error| StageError::Impossible(format!("{error}")))?,
        ..scene.guest.clone()
    };
    let sleeper = stage.start("sleeper", &args)?;
    stage.ready(&[sleeper])?;
    let hog = stage.start("hog", &args)?;
    stage.ready(&[hog])?;
    let Schedule {
        working_set_mib: mib,
        undisturbed,
        asleep,
        awake,
        ..
    } = plan;
    let words = format!("toucher phases={mib}@{undisturbed}+1@{asleep}+{mib}@{awake}");
    let touching = stage.run(sleeper, &words)?;
    phase(&mut stage, touching, 1, undisturbed)?;
    stage.say("the guest falls asleep; the other one takes its memory");
    let busy = asleep.saturating_sub(10);
    let hogging = stage.run(hog, &format!("churn mib=176 seconds={busy}"))?;
    phase(&mut stage, touching, 2, asleep)?;
    stage.say("it wakes");
    stage.verdict(touching)?;
    stage.verdict(hogging)?;
    let starts = phases(&stage, touching);
    let ticks = &stage.run_of(touching).ticks;
    let found = found(stage.samples(), ticks, &starts);
    Ok(outcome(stage.samples(), plan, &found))
}

/// Moments at which the phases began.
fn phases(stage: &Stage, run: crate::bench::RunId) -> Vec<f64> {
    let remarks = stage.run_of(run).remarks.iter();
    remarks
        .filter(|(_, name, _)| name == "phase")
        .map(|(seconds, ..)| *seconds)
        .collect()
}

/// Waits until phase `number`, from 0, begins; the one before takes `seconds` of a guest that may be slow.
fn phase(stage: &mut Stage, run: crate::bench::RunId, number: usize, seconds: u64) -> Result<(), StageError> {
    let patience = Duration::from_secs(seconds + 300);
    stage.until(patience, "the next phase begins", |stage| {
        (phases(stage, run).len() > number).then_some(())
    })
}

fn found(samples: &[Sample], ticks: &[Tick], starts: &[f64]) -> Wake {
    let [began, slept, woke] = [0, 1, 2].map(|at| starts.get(at).copied().unwrap_or(0.0));
    // The first third of the undisturbed time is for first touches.
    let settled = began + (slept - began) / 3.0;
    let before: Vec<f64> = ticks
        .iter()
        .filter(|tick| (settled..slept).contains(&tick.seconds))
        .map(|tick| tick.rate)
        .collect();
    let undisturbed = before.iter().sum::<f64>() / before.len().max(1) as f64;
    let recovered = ticks
        .iter()
        .find(|tick| tick.seconds > woke && tick.rate >= AWAKE * undisturbed)
        .map(|tick| tick.seconds);
    let sleeper = |sample: &Sample| sample.guest("sleeper").cloned().unwrap_or_default();
    let at_wake: GuestSample = samples
        .iter()
        .rfind(|sample| sample.seconds <= woke)
        .map(sleeper)
        .unwrap_or_default();
    let after: Vec<(f64, GuestSample)> = samples
        .iter()
        .filter(|sample| sample.seconds > woke && recovered.is_none_or(|end| sample.seconds <= end + 2.0))
        .map(|sample| (sample.seconds, sleeper(sample)))
        .collect();
    let pages_in = |guest: Option<&(f64, GuestSample)>| guest.map_or(0, |(_, guest)| guest.pages_in);
    let released = |(_, guest): &&(f64, GuestSample)| guest.balloon_asked_bytes < at_wake.balloon_asked_bytes;
    let per_second = after
        .windows(2)
        .map(|pair| pair[1].1.pages_in.saturating_sub(pair[0].1.pages_in));
    Wake {
        undisturbed_rate: undisturbed,
        resident_mib: at_wake.resident_bytes >> 20,
        squeezed_mib: (at_wake.compressed_bytes + at_wake.swapped_bytes) >> 20,
        ballooned_mib: at_wake.ballooned_bytes >> 20,
        seconds_to_95_percent: recovered.map(|seconds| seconds - woke),
        pages_in_per_second: per_second.max().unwrap_or(0),
        pages_in: pages_in(after.last()).saturating_sub(at_wake.pages_in),
        seconds_to_release: after.iter().find(released).map(|(seconds, _)| seconds - woke),
    }
}

fn outcome(samples: &[Sample], plan: Schedule, wake: &Wake) -> Outcome {
    let mut table = String::new();
    let _ = writeln!(
        table,
        "undisturbed {:.0} touches/s; asleep: {} MiB resident, {} MiB compressed and swapped, {} MiB in the balloon",
        wake.undisturbed_rate, wake.resident_mib, wake.squeezed_mib, wake.ballooned_mib
    );
    let _ = match wake.seconds_to_95_percent {
        Some(seconds) => writeln!(table, "awake (95 %) after {seconds:.1} s"),
        None => writeln!(table, "never came back to 95 %"),
    };
    let _ = writeln!(
        table,
        "{} pages came back, at most {} in a second",
        wake.pages_in, wake.pages_in_per_second
    );
    let mut report = Report::new("wake");
    report.set("schedule", plan);
    report.set("wake", wake);
    report.set("samples", samples);
    Outcome {
        report,
        table,
        figure: figure("A guest that wakes up", samples),
    }
}
