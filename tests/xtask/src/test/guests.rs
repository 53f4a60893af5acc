//! Tests with real guests: built here, run here if this machine's KVM runs stock kernels, else in one nested host.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use guest_images::Flavour;

use super::programs::Program;
use super::progress::{Progress, arguments};
use super::tally::{Reader, Show, Tally};
use super::{Args, Extent};
use crate::guest_system::GuestSystem;
use crate::interrupt;
use crate::place::Place;

/// A test program that takes longer hangs; on an idle machine each takes a few minutes.
const DEADLINE: Duration = Duration::from_secs(30 * 60);
const LONG_DEADLINE: Duration = Duration::from_secs(2 * 60 * 60);

/// Memory of the nested host: eight guests of 256 MiB and what they run on.
const NESTED_MEMORY_MIB: u64 = 5120;

/// The folder of the package with real guests.
const PACKAGE: &str = "tests";

/// Builds everything that is needed, then runs the test programs one after the other.
pub(super) fn run(args: &Args) -> Result<Tally> {
    // All of the workspace, as for the native tests: a part of it would unite features differently and build anew.
    let mut programs = Program::build(&["--workspace"])?;
    programs.retain(|program| program.is_of(Path::new(PACKAGE)) && program.is_integration());
    // A nested host takes time to boot; it is not asked for nothing.
    programs.retain(|program| Progress::of(&program.executable, args.filter.as_deref()).is_some());
    if programs.is_empty() {
        return Ok(Tally::default());
    }
    let system = GuestSystem::prepare()?;
    if args.extent() == Extent::Long {
        GuestSystem::also_kernel(Flavour::Cloud61)?;
    }
    let mut place = Place::choose(args.nested.into(), NESTED_MEMORY_MIB, None)?;
    let mut all = Tally::default();
    for program in programs {
        let name = &program.name;
        interrupt::check()?;
        eprintln!("test: real guests: {name} ({place})");
        match one(args, &system, &mut place, &program) {
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

fn one(args: &Args, system: &GuestSystem, place: &mut Place, program: &Program) -> Result<Tally> {
    let mut argv = vec![program.executable.display().to_string()];
    argv.extend(arguments(args.extent()));
    argv.extend(["--test-threads".into(), threads().to_string()]);
    argv.extend(args.filter.iter().cloned());
    let deadline = match args.extent() {
        Extent::Usual => DEADLINE,
        Extent::Long => LONG_DEADLINE,
    };
    let mut progress = Progress::of(&program.executable, args.filter.as_deref()).unwrap_or_default();
    let mut reader = Reader::of(&program.to_string());
    let mut line = |line: &str| {
        progress.line(line);
        if reader.line(line) == Show::Line {
            println!("{line}");
        }
    };
    let status = place
        .run(argv, &system.environment(), deadline, &mut line)
        .with_context(|| progress.hanging())?;
    Ok(reader.end(status == 0))
}

/// Guests that are up at a time, roughly: each keeps a CPU busy while it boots.
fn threads() -> usize {
    std::thread::available_parallelism()
        .map_or(2, std::num::NonZero::get)
        .clamp(2, 4)
}
