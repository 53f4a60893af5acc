//! Fuzzing: a fixed number of inputs for every target, a hundred times as many with `--long`.

use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::tally::Tally;
use super::{Extent, TestArgs};
use crate::interrupt;

/// Targets and how many inputs each gets: together about three minutes on two CPUs. An input of `share-domain` is a whole
/// sequence of calls, with every invariant checked after each.
const TARGETS: &[(&str, u64)] = &[
    ("balloon-ring", 1_000_000),
    ("balloon-schedule", 1_000_000),
    ("balloon-frames", 1_000_000),
    ("share-wire", 500_000),
    ("share-domain", 10_000),
];

/// With `--long` each gets this many times as many.
const LONG: u64 = 100;

/// Runs every target that the filter leaves. A target that survives passed one test.
pub(super) fn run(args: &TestArgs) -> Result<Tally> {
    let times = match args.extent() {
        Extent::Usual => 1,
        Extent::Long => LONG,
    };
    let seed = seed();
    let mut tally = Tally::default();
    for (target, runs) in TARGETS {
        if args
            .filter
            .as_ref()
            .is_some_and(|part| !target.contains(part.as_str()))
        {
            continue;
        }
        interrupt::check()?;
        eprintln!("test: fuzzing {target}, {} inputs, seed {seed}", runs * times);
        if survives(target, runs * times, seed)? {
            tally.passed += 1;
        } else {
            println!("fuzzing {target} found something; the input is in target/fuzz");
            tally.failed += 1;
        }
    }
    Ok(tally)
}

/// Other inputs every day, the same all day: what was found in the morning is found again after lunch.
fn seed() -> u64 {
    const DAY: u64 = 24 * 60 * 60;
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(1, |since| since.as_secs() / DAY)
}

fn survives(target: &str, runs: u64, seed: u64) -> Result<bool> {
    let status = Command::new(env!("CARGO"))
        .args([
            "run",
            "--quiet",
            "--locked",
            "--profile",
            "fuzz",
            "--package",
            "fuzz",
            "--",
        ])
        .args([target, "--runs", &runs.to_string(), "--jobs", "2"])
        .args(["--seed", &seed.to_string()])
        .stdin(Stdio::null())
        .status()
        .context("cannot start cargo")?;
    Ok(status.success())
}
