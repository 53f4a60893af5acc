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

/// A unit test that needs no guest but what every nested host has and other machines may lack: control groups of
/// version 2. With the folder of its package.
const UNIT_TEST: (&str, &str) = (
    "vmm/manager",
    "cgroup::tests::the_kernel_slows_down_a_process_that_ignores_its_limit",
);

/// Builds everything that is needed, then runs the test programs one after the other.
pub(super) fn run(args: &Args) -> Result<Tally> {
    // All of the workspace, as for the native tests: a part of it would unite features differently and build anew.
    let programs = Program::build(&["--workspace"])?;
    let chosen = programs.into_iter().filter_map(|program| {
        let filter = filter_for(&program, args.filter.as_deref())?;
        // A nested host takes time to boot; it is not asked for nothing.
        let progress = Progress::of(&program.executable, filter)?;
        Some((program, filter, progress))
    });
    let chosen: Vec<_> = chosen.collect();
    if chosen.is_empty() {
        return Ok(Tally::default());
    }
    let system = GuestSystem::prepare()?;
    if args.extent() == Extent::Long {
        GuestSystem::also_kernel(Flavour::Cloud61)?;
    }
    let mut place = Place::choose(args.nested.into(), NESTED_MEMORY_MIB, None)?;
    let mut all = Tally::default();
    for (program, filter, progress) in chosen {
        let name = &program.name;
        interrupt::check()?;
        eprintln!("test: real guests: {name} ({place})");
        match one((&program, filter, progress), args.extent(), &system, &mut place) {
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

/// Which tests of `program` run here, of those with `wanted` in their names; `None` for none.
fn filter_for<'a>(program: &Program, wanted: Option<&'a str>) -> Option<Option<&'a str>> {
    if program.is_integration() {
        return program.is_of(Path::new(PACKAGE)).then_some(wanted);
    }
    let (folder, test) = UNIT_TEST;
    let is_wanted = wanted.is_none_or(|wanted| test.contains(wanted));
    (is_wanted && program.is_of(Path::new(folder))).then_some(Some(test))
}

fn one(
    (program, filter, mut progress): (&Program, Option<&str>, Progress),
    extent: Extent,
    system: &GuestSystem,
    place: &mut Place,
) -> Result<Tally> {
    let mut argv = vec![program.executable.display().to_string()];
    argv.extend(arguments(extent));
    argv.extend(["--test-threads".into(), threads().to_string()]);
    argv.extend(filter.map(str::to_owned));
    let deadline = match extent {
        Extent::Usual => DEADLINE,
        Extent::Long => LONG_DEADLINE,
    };
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
