//! More guests than there is memory for: does the budget hold, and do the guests?
//!
//! Half of the guests run services under load and rewrite and check pages meanwhile; the other half have filled their
//! memory with a pattern and rest, and find it as they left it at the end. One of those loses its balloon driver, so
//! that only compression and swap are left for it.
//!
//! When the busy ones are done all guests are quiet, and what sharing saves is held against what an
//! [oracle](crate::Findings) finds. The idle guests' data is checked after that: until then it was shared, compressed,
//! swapped, and read by the oracle.

mod accounting;
mod wake;

use std::fmt::Write;
use std::time::Duration;

use levy_agent::{Action, ModuleChange};
use serde::Serialize;
use serde_json::Map;

use super::saving::Saving;
use super::{Guest, Outcome, Params, Report, RunId, Testbed, TestbedError};
use levy_launcher::GuestArgs;

pub use accounting::{Accounting, figure};
pub use wake::wake;

/// Longer than any bench: these runs are told when to end.
const ENDLESS: u32 = 100_000;

/// How long all guests go on after the services are done, so that idle guests are seen under pressure.
const AFTER: Duration = Duration::from_secs(10);

/// How long a verdict may take: setting a service up on an emulated host that does the same for others takes minutes, of
/// which the agent allows ten for the server alone.
const PATIENCE: Duration = Duration::from_secs(1500);

/// How long all guests are quiet before the savings are counted.
const QUIET: Duration = Duration::from_secs(60);

/// Which guests take part, and in how much memory.
struct Mix {
    budget: u64,
    size: u64,
    /// Names of busy guests, and what they run: a service first, or nothing.
    busy: &'static [(&'static str, &'static str)],
    /// What a busy guest checks meanwhile, at a rate that leaves the CPU to its service: alone with it on a third of an
    /// emulated one it gets through 170 pages a second.
    churn: &'static str,
    idle: u32,
    /// MiB that an idle guest has filled.
    filled: u32,
}

/// Services of a size that an emulated CPU sets up in minutes while seven other guests use it; what the idle ones have
/// filled makes memory short.
const FULL: Mix = Mix {
    budget: 1 << 30,
    size: 256 << 20,
    busy: &[
        ("redis", "redis mib=32 seconds=60"),
        ("nginx", "nginx files=128 seconds=60"),
        ("pgbench", "pgbench scale=1 seconds=60"),
        ("dbench", "dbench clients=2 seconds=60"),
    ],
    churn: "churn mib=40 rate=10",
    idle: 4,
    filled: 168,
};

const QUICK: Mix = Mix {
    budget: 288 << 20,
    size: 192 << 20,
    busy: &[
        ("redis", "redis mib=32 seconds=15"),
        ("churn", "churn mib=64 seconds=15"),
    ],
    churn: "churn mib=16 rate=500 seed=7",
    idle: 1,
    filled: 96,
};

/// How one guest fared.
#[derive(Clone, Debug, Serialize)]
struct GuestOutcome {
    name: String,
    /// All its data was right, its service did its work, and it never killed a process for lack of memory.
    ok: bool,
    /// Operations of its service per second.
    rate: f64,
    unit: String,
    oom_kills: u64,
    /// What was wrong.
    trouble: Vec<String>,
}

/// One guest and what it was asked to run.
struct Started {
    guest: Guest,
    service: Option<RunId>,
    /// Runs that go on until they are told to end.
    checks: Vec<RunId>,
}

/// Runs the bench. While guests work, scanning may use what it usually may; while they are quiet, `quiet_scan_cpu` CPUs.
///
/// # Errors
/// When guests cannot be started or end unasked. Wrong data is not an error: it is what the report is about.
pub fn overcommit(params: &Params, quiet_scan_cpu: f64) -> Result<Outcome, TestbedError> {
    let mix = if params.quick { QUICK } else { FULL };
    let mut testbed = Testbed::open(params, params.settings(mix.budget))?;
    let guest = GuestArgs {
        memory: format!("size={}M", mix.size >> 20)
            .parse()
            .map_err(|error| TestbedError::Impossible(format!("{error}")))?,
        ..params.guest.clone()
    };
    let mut started = Vec::new();
    for number in 1..=mix.idle {
        let mut one = enter(&mut testbed, &guest, &format!("idle-{number}"))?;
        let words = format!("fill mib={} seed={number} seconds={ENDLESS}", mix.filled);
        one.checks.push(testbed.run(one.guest, &words)?);
        started.push(one);
    }
    // The last one's balloon is gone before the manager asks it for anything.
    let silent = started[started.len() - 1].guest;
    testbed.tell(
        silent,
        Action::Module {
            name: "virtio_balloon".into(),
            change: ModuleChange::Remove,
        },
    )?;
    let silent = testbed.name(silent).to_owned();
    let first = started.len();
    for (name, _) in mix.busy {
        started.push(enter(&mut testbed, &guest, name)?);
    }
    // All are up before the first one works, so that they work at the same time however long a boot takes.
    for (one, (_, words)) in started[first..].iter_mut().zip(mix.busy) {
        let churn = format!("{} seconds={ENDLESS}", mix.churn);
        one.checks.push(testbed.run(one.guest, &churn)?);
        one.service = Some(testbed.run(one.guest, words)?);
    }
    testbed.say(&format!("{} busy guests are at work", mix.busy.len()));
    for one in &started {
        if let Some(service) = one.service {
            // A bad verdict, or none, is counted below.
            let _ = await_verdict(&mut testbed, service)?;
        }
    }
    testbed.pass(AFTER)?;
    let mut outcomes = Vec::new();
    for one in &started[first..] {
        outcomes.push(outcome_of(&mut testbed, one)?);
        params.partial.set("fates", &outcomes);
    }
    let guests: Vec<Guest> = started.iter().map(|one| one.guest).collect();
    let saving = quiet(&mut testbed, &guests, quiet_scan_cpu)?;
    params.partial.set("saving", &saving);
    for (place, one) in started[..first].iter().enumerate() {
        outcomes.insert(place, outcome_of(&mut testbed, one)?);
        params.partial.set("fates", &outcomes);
    }
    let accounting = Accounting::of(testbed.samples(), guest.memory.min);
    let mut outcome = outcome(&testbed, accounting, outcomes, &silent);
    let _ = writeln!(outcome.table, "after {} s of quiet, {saving}", QUIET.as_secs());
    outcome.report.set("quiet_seconds", QUIET.as_secs());
    outcome.report.set("quiet_scan_cpu", quiet_scan_cpu);
    outcome.report.set("reclaimed_of_oracle", saving.of_oracle);
    outcome.report.set("saving", saving);
    Ok(outcome)
}

/// What is saved once no guest has worked for a while.
fn quiet(testbed: &mut Testbed, guests: &[Guest], scan_cpu: f64) -> Result<Saving, TestbedError> {
    testbed.say(&format!("quiet for {} s", QUIET.as_secs()));
    testbed.set(|settings| settings.scan.cpu = scan_cpu)?;
    let saving = Saving::measure(testbed, guests, QUIET)?;
    testbed.say(&saving.to_string());
    Ok(saving)
}

fn enter(testbed: &mut Testbed, args: &GuestArgs, name: &str) -> Result<Started, TestbedError> {
    let guest = testbed.start(name, args)?;
    testbed.ready(&[guest])?;
    Ok(Started {
        guest,
        service: None,
        checks: Vec::new(),
    })
}

/// Waits for a verdict; what is wrong with it, or that it did not come.
fn await_verdict(testbed: &mut Testbed, run: RunId) -> Result<Option<String>, TestbedError> {
    let what = format!(
        "{} in {} gives its verdict",
        testbed.run_of(run).name,
        testbed.name(run.guest)
    );
    let verdict = testbed.until(PATIENCE, &what, |testbed| testbed.run_of(run).verdict.clone());
    match verdict {
        Ok(verdict) if verdict.ok => Ok(None),
        Ok(verdict) => Ok(Some(verdict.detail)),
        Err(error) => allow_failure(Err(error)),
    }
}

/// Wrong data and late words are findings; everything else ends the bench.
fn allow_failure(result: Result<(), TestbedError>) -> Result<Option<String>, TestbedError> {
    match result {
        Ok(()) => Ok(None),
        Err(
            error @ (TestbedError::Failed { .. } | TestbedError::Late { .. } | TestbedError::Refused { .. }),
        ) => Ok(Some(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Ends a guest's checks and hears what they found.
fn outcome_of(testbed: &mut Testbed, one: &Started) -> Result<GuestOutcome, TestbedError> {
    let mut trouble = Vec::new();
    for &run in &one.checks {
        testbed.stop_run(run)?;
        trouble.extend(await_verdict(testbed, run)?);
    }
    let verdict = one.service.and_then(|run| testbed.run_of(run).verdict.clone());
    if let Some(service) = one.service {
        trouble.extend(await_verdict(testbed, service)?);
    }
    let asked = match testbed.tell(
        one.guest,
        Action::Exec {
            argv: ["grep", "oom_kill", "/proc/vmstat"].map(String::from).into(),
            seconds: 60,
        },
    ) {
        Ok(answer) => answer,
        Err(error) => {
            trouble.extend(allow_failure(Err(error))?);
            Map::new()
        }
    };
    let counted = asked
        .get("stdout")
        .and_then(|text| text.as_str())
        .unwrap_or_default();
    let oom_kills = counted
        .split_whitespace()
        .nth(1)
        .and_then(|count| count.parse().ok());
    if oom_kills != Some(0) {
        trouble.push(format!("processes killed for want of memory: {counted:?}"));
    }
    Ok(GuestOutcome {
        name: testbed.name(one.guest).to_owned(),
        ok: trouble.is_empty(),
        rate: verdict.as_ref().map_or(0.0, |verdict| verdict.rate),
        unit: verdict.map_or_else(String::new, |verdict| verdict.unit),
        oom_kills: oom_kills.unwrap_or(0),
        trouble,
    })
}

fn outcome(testbed: &Testbed, accounting: Accounting, outcomes: Vec<GuestOutcome>, silent: &str) -> Outcome {
    let samples = testbed.samples();
    let most = |of: fn(&super::GuestSample) -> u64| {
        let all = samples.iter().filter_map(|sample| sample.guest(silent)).map(of);
        all.max().unwrap_or(0) >> 20
    };
    let (compressed, swapped) = (
        most(|guest| guest.memory.compressed_bytes),
        most(|guest| guest.memory.swapped_bytes),
    );
    let guests_ok = outcomes.iter().filter(|guest| guest.ok).count();
    let mut table = format!(
        "{:<10} {:>4} {:>12} {:<14} trouble\n",
        "guest", "ok", "per second", "of"
    );
    for guest in &outcomes {
        let ok = if guest.ok { "yes" } else { "NO" };
        let trouble = guest.trouble.join("; ");
        let _ = writeln!(
            table,
            "{:<10} {ok:>4} {:>12.1} {:<14} {trouble}",
            guest.name, guest.rate, guest.unit
        );
    }
    let _ = writeln!(
        table,
        "{} samples: {} above the budget by more than 2 %, most {:.1} % of it; {} of guests below their minimum\n\
         seconds in high, soft, hard, low: {:?}\n\
         {silent} had no balloon: up to {compressed} MiB of it compressed, {swapped} MiB swapped",
        accounting.samples,
        accounting.budget_exceeded_samples,
        accounting.most_of_budget * 100.0,
        accounting.below_minimum_samples,
        accounting.states,
    );
    let mut report = Report::new("overcommit");
    report.set("guests", outcomes.len());
    report.set("guests_ok", guests_ok);
    report.set("budget_exceeded_samples", accounting.budget_exceeded_samples);
    report.set("ledger", accounting);
    report.set("fates", outcomes);
    report.set("silent_balloon.guest", silent);
    report.set("silent_balloon.most_compressed_mib", compressed);
    report.set("silent_balloon.most_swapped_mib", swapped);
    report.set("samples", samples);
    Outcome {
        report,
        table,
        figure: figure("Overcommitted guests", samples),
    }
}
