//! Tests with real guests: built here, run here if this machine's KVM runs stock kernels, else in one nested host.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use guest_images::Flavour;
use serde::Deserialize;

use super::tally::{Reader, Show, Tally};
use super::{Args, Extent};
use crate::guest_system::GuestSystem;
use crate::interrupt;
use crate::place::Place;

/// A test program that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(15 * 60);
const LONG_DEADLINE: Duration = Duration::from_secs(2 * 60 * 60);

/// Memory of the nested host: eight guests of 256 MiB and what they run on.
const NESTED_MEMORY_MIB: u64 = 5120;

/// How cargo names the package of the tests with real guests.
const PACKAGE: &str = "levy-tests";

/// A line of `cargo --message-format=json`, the part that is looked at.
#[derive(Deserialize)]
struct Message {
    package_id: String,
    executable: PathBuf,
    target: Target,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Builds everything that is needed, then runs the test programs one after the other.
pub(super) fn run(args: &Args) -> Result<Tally> {
    let programs = programs()?;
    if programs.is_empty() {
        return Ok(Tally::default());
    }
    let system = GuestSystem::prepare()?;
    if args.extent() == Extent::Long {
        GuestSystem::also_kernel(Flavour::Cloud61)?;
    }
    let mut place = Place::choose(args.nested.into(), NESTED_MEMORY_MIB, None)?;
    let mut all = Tally::default();
    for (name, program) in programs {
        interrupt::check()?;
        eprintln!("test: real guests: {name} ({place})");
        match one(args, &system, &mut place, &program.display().to_string()) {
            Ok(tally) => all.add(&tally),
            Err(error) if error.is::<interrupt::Interrupted>() => return Err(error),
            Err(error) => {
                // A nested host in which something hangs, or which died, is not asked for more.
                eprintln!("test: {name}: {error:#}");
                all.failed += 1;
                break;
            }
        }
    }
    Ok(all)
}

/// Name and path of each program with real guests.
fn programs() -> Result<BTreeMap<String, PathBuf>> {
    let output = Command::new(env!("CARGO"))
        // All of the workspace, as for the native tests: a part of it would unite features differently and build anew.
        .args(["test", "--locked", "--no-run", "--workspace"])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the tests with real guests do not build");
    }
    let mut programs = BTreeMap::new();
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<Message>(line) else {
            continue;
        };
        let is_test = message.target.kind.iter().any(|kind| kind == "test");
        if is_test && message.package_id.contains(PACKAGE) {
            programs.insert(message.target.name, message.executable);
        }
    }
    Ok(programs)
}

fn one(args: &Args, system: &GuestSystem, place: &mut Place, program: &str) -> Result<Tally> {
    let mut argv = vec![program.to_owned(), "--show-output".into()];
    argv.extend(["--test-threads".into(), threads().to_string()]);
    let mut deadline = DEADLINE;
    if args.extent() == Extent::Long {
        argv.push("--include-ignored".into());
        deadline = LONG_DEADLINE;
    }
    argv.extend(args.filter.iter().cloned());
    let mut reader = Reader::default();
    let mut line = |line: &str| {
        if reader.line(line) == Show::Line {
            println!("{line}");
        }
    };
    let status = place.run(argv, &system.environment(), deadline, &mut line)?;
    if status != 0 && reader.tally().failed == 0 {
        eprintln!("test: {program} ended with status {status}");
        reader.broken();
    }
    Ok(reader.tally().clone())
}

/// Guests that are up at a time, roughly: each keeps a CPU busy while it boots.
fn threads() -> usize {
    std::thread::available_parallelism()
        .map_or(2, std::num::NonZero::get)
        .clamp(2, 4)
}
