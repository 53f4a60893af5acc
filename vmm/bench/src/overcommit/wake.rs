//! How long does a guest that was squeezed to its minimum take to be itself again?
//!
//! It touches a working set for a while, undisturbed. Then it lets most of it rest, and the budget shrinks to what
//! leaves the guest its minimum and no more; then it touches all of it again, and the budget is as it was. Several times.

use std::fmt::Write;
use std::time::Duration;

use allocator::Pages;
use serde::Serialize;

use super::figure;
use crate::{GuestSample, Outcome, Params, Report, RunId, Sample, Samples, Testbed, TestbedError, Tick};
use levy_launcher::GuestArgs;

/// The part of its undisturbed throughput at which a guest is itself again.
const AWAKE: f64 = 0.95;
/// A guest's name.
const SLEEPER: &str = "sleeper";
/// How often it is looked whether the guest is awake.
const LOOK: Duration = Duration::from_millis(100);
/// What a budget hands out beyond a guest's minimum, MiB: the first of these that is accepted.
const BESIDE_MIB: [u64; 6] = [6, 9, 12, 18, 24, 64];
/// A guest that may be slow takes so much longer than its schedule.
const PATIENCE: f64 = 300.0;

/// What the bench does; seconds by the guest's clock.
#[derive(Clone, Copy, Debug, Serialize)]
struct WakeSchedule {
    size_mib: u64,
    min_mib: u64,
    budget_mib: u64,
    working_set_mib: u64,
    wakes: usize,
    undisturbed: u64,
    asleep: u64,
    awake: u64,
}

const FULL: WakeSchedule = WakeSchedule {
    size_mib: 256,
    min_mib: 64,
    budget_mib: 416,
    working_set_mib: 128,
    wakes: 3,
    undisturbed: 60,
    asleep: 30,
    awake: 90,
};

const QUICK: WakeSchedule = WakeSchedule {
    wakes: 1,
    undisturbed: 45,
    ..FULL
};

/// One wake. Times are seconds.
#[derive(Clone, Debug, Serialize)]
struct Wake {
    /// Touches per second before it first slept.
    undisturbed_rate: f64,
    /// Private memory that the plan left it when it woke, and what was where.
    target_mib: u64,
    private_mib: u64,
    resident_mib: u64,
    compressed_mib: u64,
    swapped_mib: u64,
    ballooned_mib: u64,
    /// Until the end of the first whole second with 95 % of its throughput; none if that never came.
    seconds_to_95_percent: Option<f64>,
    /// Most pages brought back from compression and swap in one second, and in all until then.
    pages_in_per_second: u64,
    pages_in: u64,
    /// Until its balloon was asked for less; none if it was not.
    seconds_to_release: Option<f64>,
}

/// Runs the bench.
///
/// # Errors
/// When a guest does not do its work, or its data was wrong.
pub fn wake(params: &Params) -> Result<Outcome, TestbedError> {
    let plan = if params.quick { QUICK } else { FULL };
    let mut testbed = Testbed::open(params, params.settings(plan.budget_mib << 20))?;
    let args = GuestArgs {
        memory: format!("size={}M,min={}M", plan.size_mib, plan.min_mib)
            .parse()
            .map_err(|error| TestbedError::Impossible(format!("{error}")))?,
        ..params.guest.clone()
    };
    let sleeper = testbed.start(SLEEPER, &args)?;
    testbed.ready(&[sleeper])?;
    let touching = testbed.run(sleeper, &plan.words())?;
    let mut wakes = Vec::new();
    for number in 0..plan.wakes {
        phase(&mut testbed, touching, number * 2 + 1)?;
        testbed.say("the guest falls asleep, and is squeezed");
        squeeze(&mut testbed, plan, touching, number * 2 + 2)?;
        testbed.say("it wakes");
        match number + 1 == plan.wakes {
            true => testbed.verdict(touching).map(|_| ())?,
            false => phase(&mut testbed, touching, number * 2 + 3)?,
        }
        let found = Wake::of(&testbed, touching, number);
        testbed.say(&found.to_string());
        wakes.push(found);
        params.partial.set("wake", &wakes);
    }
    Ok(outcome(testbed.samples(), plan, &wakes))
}

impl WakeSchedule {
    fn words(&self) -> String {
        let Self {
            working_set_mib: mib,
            undisturbed,
            asleep,
            awake,
            ..
        } = self;
        let wake = format!("+1@{asleep}+{mib}@{awake}");
        format!("toucher phases={mib}@{undisturbed}{}", wake.repeat(self.wakes))
    }
}

/// Moments at which the phases began.
fn phases(testbed: &Testbed, run: RunId) -> Vec<f64> {
    let remarks = testbed.run_of(run).remarks.iter();
    remarks
        .filter(|(_, name, _)| name == "phase")
        .map(|(seconds, ..)| *seconds)
        .collect()
}

/// Waits until phase `number`, from 0, begins.
fn phase(testbed: &mut Testbed, run: RunId, number: usize) -> Result<(), TestbedError> {
    let patience = Duration::from_secs_f64(PATIENCE);
    testbed.until(patience, "the next phase begins", |testbed| {
        (phases(testbed, run).len() > number).then_some(())
    })
}

/// Leaves the guest its minimum until phase `number` begins, and then all there was.
fn squeeze(testbed: &mut Testbed, plan: WakeSchedule, run: RunId, number: usize) -> Result<(), TestbedError> {
    let until = testbed.seconds() + plan.asleep as f64 + PATIENCE;
    while phases(testbed, run).len() <= number {
        if testbed.seconds() > until {
            return phase(testbed, run, number);
        }
        leave_minimum(testbed, plan.min_mib)?;
        testbed.pass(LOOK)?;
    }
    testbed.set(|settings| settings.budget = Pages::new(plan.budget_mib << 8))
}

/// A budget that leaves the guest little more than its minimum: less would break a promise sooner or later, as what its
/// process and this one need besides it grows.
fn leave_minimum(testbed: &Testbed, min_mib: u64) -> Result<(), TestbedError> {
    let mut result = Ok(());
    for beside in BESIDE_MIB {
        result = testbed.hand_out(Pages::new((min_mib + beside) << 8));
        // No plan at all: what is needed besides the guest has grown beyond the budget.
        if let Err(TestbedError::Impossible(_)) = &result {
            result = testbed.set(|settings| settings.budget += Pages::new(beside << 8));
        }
        if !matches!(result, Err(TestbedError::Change(_))) {
            break;
        }
    }
    result
}

impl Wake {
    fn of(testbed: &Testbed, run: RunId, number: usize) -> Self {
        let starts = phases(testbed, run);
        let at = |phase: usize| starts.get(phase).copied().unwrap_or(f64::MAX);
        let span = (at(number * 2 + 2), at(number * 2 + 3));
        let undisturbed = undisturbed(&testbed.run_of(run).ticks, (at(0), at(1)));
        Self::between(testbed.samples(), &testbed.run_of(run).ticks, undisturbed, span)
    }

    /// The wake at the first moment of `span`; at the second one the guest falls asleep again.
    fn between(samples: &[Sample], ticks: &[Tick], undisturbed: f64, (woke, end): (f64, f64)) -> Self {
        let recovered = ticks
            .iter()
            .find(|tick| (woke + 1.0..end).contains(&tick.seconds) && tick.rate >= AWAKE * undisturbed)
            .map(|tick| tick.seconds);
        let sleeper = |sample: &Sample| sample.guest(SLEEPER).cloned().unwrap_or_default();
        let at_wake: GuestSample = samples
            .iter()
            .rfind(|sample| sample.seconds <= woke)
            .map(sleeper)
            .unwrap_or_default();
        // Reports are up to a second old.
        let until = recovered.map_or(end, |recovered| recovered + 1.0);
        let after: Vec<(f64, GuestSample)> = samples
            .iter()
            .filter(|sample| sample.seconds > woke && sample.seconds <= until)
            .map(|sample| (sample.seconds, sleeper(sample)))
            .collect();
        let came = |guest: &GuestSample| guest.pages_in.saturating_sub(at_wake.pages_in);
        let counts: Vec<u64> = std::iter::once(0)
            .chain(after.iter().map(|(_, guest)| came(guest)))
            .collect();
        let released =
            |(_, guest): &&(f64, GuestSample)| guest.balloon_asked_bytes < at_wake.balloon_asked_bytes;
        Self {
            undisturbed_rate: undisturbed,
            target_mib: at_wake.target_bytes.unwrap_or_default() >> 20,
            private_mib: at_wake.memory.private_bytes >> 20,
            resident_mib: at_wake.resident_bytes >> 20,
            compressed_mib: at_wake.memory.compressed_bytes >> 20,
            swapped_mib: at_wake.memory.swapped_bytes >> 20,
            ballooned_mib: at_wake.memory.ballooned_bytes >> 20,
            seconds_to_95_percent: recovered.map(|seconds| seconds - woke),
            pages_in_per_second: counts.windows(2).map(|two| two[1] - two[0]).max().unwrap_or(0),
            pages_in: counts.last().copied().unwrap_or(0),
            seconds_to_release: after.iter().find(released).map(|(seconds, _)| seconds - woke),
        }
    }
}

/// The mean rate in the last third between two moments: before, pages are touched for the first time.
fn undisturbed(ticks: &[Tick], (began, slept): (f64, f64)) -> f64 {
    let settled = slept - (slept - began) / 3.0;
    let before: Vec<f64> = ticks
        .iter()
        .filter(|tick| (settled..slept).contains(&tick.seconds))
        .map(|tick| tick.rate)
        .collect();
    before.iter().sum::<f64>() / before.len().max(1) as f64
}

impl std::fmt::Display for Wake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "asleep: {} MiB resident ({} private of {} that the plan leaves it), {} compressed, {} swapped, {} in the balloon; ",
            self.resident_mib,
            self.private_mib,
            self.target_mib,
            self.compressed_mib,
            self.swapped_mib,
            self.ballooned_mib
        )?;
        match self.seconds_to_95_percent {
            Some(seconds) => write!(f, "awake (95 %) after {seconds:.1} s; ")?,
            None => f.write_str("never came back to 95 %; ")?,
        }
        write!(
            f,
            "{} pages came back, at most {} in a second",
            self.pages_in, self.pages_in_per_second
        )
    }
}

fn outcome(samples: &[Sample], plan: WakeSchedule, wakes: &[Wake]) -> Outcome {
    let rate = wakes.first().map_or(0.0, |wake| wake.undisturbed_rate);
    let mut table = format!("undisturbed {rate:.0} touches/s\n");
    for wake in wakes {
        let _ = writeln!(table, "{wake}");
    }
    let mut report = Report::new("wake");
    report.set("schedule", plan);
    report.set("wake", wakes);
    let came_back: Samples = wakes
        .iter()
        .filter_map(|wake| wake.seconds_to_95_percent)
        .collect();
    report.set("woke", came_back.len());
    if !came_back.is_empty() {
        report.set("seconds_to_95_percent", came_back.median());
    }
    report.set("samples", samples);
    Outcome {
        report,
        table,
        figure: figure("A guest that wakes up", samples),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use levy_protocol::api::MemoryView;

    #[test]
    fn a_wake_lasts_until_the_first_whole_second_at_full_speed() {
        let sample = |seconds: f64, pages_in| Sample {
            seconds,
            state: None,
            budget_bytes: 0,
            used_bytes: 0,
            pools_bytes: 0,
            manager_bytes: 0,
            guests: vec![GuestSample {
                name: SLEEPER.to_owned(),
                memory: MemoryView {
                    private_bytes: 66 << 20,
                    ..MemoryView::default()
                },
                pages_in,
                ..GuestSample::default()
            }],
        };
        let samples: Vec<_> = [
            (9.5, 100),
            (10.5, 400),
            (11.5, 1400),
            (12.5, 1500),
            (13.5, 1500),
            (20.5, 9999),
        ]
        .map(|(seconds, pages)| sample(seconds, pages))
        .into();
        let rates = [(10.3, 1000.0), (11.3, 300.0), (12.3, 960.0), (13.3, 990.0)];
        let ticks: Vec<_> = rates
            .map(|(seconds, rate)| Tick {
                seconds,
                ops: 0,
                rate,
            })
            .into();
        let wake = Wake::between(&samples, &ticks, 1000.0, (10.0, 20.0));
        // The second that had begun before it woke does not count.
        assert!((wake.seconds_to_95_percent.unwrap() - 2.3).abs() < 1e-9);
        assert_eq!(
            (wake.private_mib, wake.pages_in, wake.pages_in_per_second),
            (66, 1400, 1000)
        );
        let never = Wake::between(&samples, &ticks[..2], 1000.0, (10.0, 20.0));
        assert_eq!((never.seconds_to_95_percent, never.pages_in), (None, 1400));
    }

    #[test]
    fn the_words_have_a_phase_for_each_sleep_and_each_wake() {
        let words = WakeSchedule { wakes: 2, ..QUICK }.words();
        assert_eq!(words, "toucher phases=128@45+1@30+128@90+1@30+128@90");
    }
}
