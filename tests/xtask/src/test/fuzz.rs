//! Fuzzing: a fixed number of inputs for every target, a hundred times as many with `--long`.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::tally::Tally;
use super::{Args, Extent};
use crate::interrupt;

/// Targets and how many inputs each gets: together about two minutes on two CPUs.
const TARGETS: &[(&str, u64)] = &[
    ("balloon-ring", 1_000_000),
    ("balloon-schedule", 1_000_000),
    ("balloon-frames", 1_000_000),
];

/// With `--long` each gets so many times as many.
const LONG: u64 = 100;

/// Runs every target that the filter leaves. A target that survives passed one test.
pub(super) fn run(args: &Args) -> Result<Tally> {
    let times = match args.extent() {
        Extent::Usual => 1,
        Extent::Long => LONG,
    };
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
        eprintln!("test: fuzzing {target}, {} inputs", runs * times);
        if survives(target, runs * times)? {
            tally.passed += 1;
        } else {
            println!("fuzzing {target} found something; the input is in target/fuzz");
            tally.failed += 1;
        }
    }
    Ok(tally)
}

fn survives(target: &str, runs: u64) -> Result<bool> {
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
        .stdin(Stdio::null())
        .status()
        .context("cannot start cargo")?;
    Ok(status.success())
}
