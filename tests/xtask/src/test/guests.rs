//! Tests with real guests: built here, run here if this machine's KVM runs stock kernels, else in nested hosts.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use guest_images::Flavour;

use super::programs::Program;
use super::progress::{Progress, arguments};
use super::tally::{Reader, Show, Tally};
use super::{Extent, TestArgs};
use crate::guest_system::GuestSystem;
use crate::interrupt;
use crate::place::{Choice, Place};

/// A test program that takes longer hangs; on an idle machine each takes a few minutes.
const DEADLINE: Duration = Duration::from_secs(30 * 60);
const LONG_DEADLINE: Duration = Duration::from_secs(2 * 60 * 60);

/// Memory of the nested host: eight guests of 256 MiB and what they run on.
const NESTED_MEMORY_MIB: u64 = 5120;

/// What QEMU takes besides that, and the page cache that the hosts share.
const NESTED_EXTRA_MIB: u64 = 1024;

/// Nested hosts side by side at most.
const MOST_HOSTS: usize = 4;

/// The folder of the package with real guests.
const PACKAGE: &str = "tests";

/// A unit test that needs no guest but what every nested host has and other machines may lack: control groups of
/// version 2. With the folder of its package.
const UNIT_TEST: (&str, &str) = (
    "vmm/manager",
    "cgroup::tests::the_kernel_slows_down_a_process_that_ignores_its_limit",
);

/// Builds everything that is needed, then runs the test programs one after the other.
pub(super) fn run(args: &TestArgs) -> Result<Tally> {
    // All of the workspace, as for the native tests: a part of it would unite features differently and build anew.
    let programs = Program::build(&["--workspace"])?;
    let queue = programs.into_iter().filter_map(|program| {
        let filter = filter_for(&program, args.filter.as_deref())?;
        // A nested host takes time to boot; it is not asked for nothing.
        let progress = Progress::of(&program.executable, filter)?;
        let filter = filter.map(str::to_owned);
        Some(Errand {
            program,
            filter,
            progress,
        })
    });
    let queue: VecDeque<_> = queue.collect();
    if queue.is_empty() {
        return Ok(Tally::default());
    }
    let system = GuestSystem::prepare()?;
    if args.extent() == Extent::Long {
        GuestSystem::also_kernel(Flavour::Cloud61)?;
    }
    let first = Place::choose(args.nested.into(), NESTED_MEMORY_MIB, None)?;
    let hosts = hosts_for(&first, queue.len());
    let work = Work {
        queue: Mutex::new(queue),
        environment: system.environment(),
        extent: args.extent(),
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..hosts)
            .map(|_| scope.spawn(|| work.serve(Place::choose(Choice::Nested, NESTED_MEMORY_MIB, None)?)))
            .collect();
        let mut all = work.serve(first)?;
        for other in others {
            all.add(&other.join().map_err(|_| anyhow!("a thread panicked"))??);
        }
        Ok(all)
    })
}

/// How many hosts work side by side: this machine is one; emulated ones have one CPU each.
fn hosts_for(first: &Place, programs: usize) -> usize {
    if matches!(first, Place::Native) {
        return 1;
    }
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // The first has taken little of its memory yet.
    let room = available_mib() / (NESTED_MEMORY_MIB + NESTED_EXTRA_MIB);
    let most = cpus.min(programs).min(MOST_HOSTS);
    usize::try_from(room).unwrap_or(1).clamp(1, most.max(1))
}

/// Memory that is free or could be at once, 0 if that is not known.
fn available_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) >> 10
}

/// A test program to run, and which of its tests.
struct Errand {
    program: Program,
    filter: Option<String>,
    progress: Progress,
}

/// What is to be run, for all hosts.
struct Work {
    queue: Mutex<VecDeque<Errand>>,
    environment: Vec<(String, String)>,
    extent: Extent,
}

impl Work {
    /// Runs one program after the other at `place` until none is left.
    fn serve(&self, mut place: Place) -> Result<Tally> {
        let mut all = Tally::default();
        while let Some(errand) = self.next() {
            interrupt::check()?;
            let name = errand.program.name.clone();
            eprintln!("test: real guests: {name} ({place})");
            match self.run(errand, &mut place) {
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

    fn next(&self) -> Option<Errand> {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    /// Runs one program. What it says is shown at its end, so that no other's is in between.
    fn run(&self, errand: Errand, place: &mut Place) -> Result<Tally> {
        let Errand {
            program,
            filter,
            mut progress,
        } = errand;
        let mut argv = vec![program.executable.display().to_string()];
        argv.extend(arguments(self.extent));
        argv.extend(["--test-threads".into(), threads().to_string()]);
        argv.extend(filter);
        let deadline = match self.extent {
            Extent::Usual => DEADLINE,
            Extent::Long => LONG_DEADLINE,
        };
        let mut reader = Reader::of(&program.to_string());
        let mut shown = format!("test: {program} ({place})\n");
        let mut line = |line: &str| {
            progress.line(line);
            if reader.line(line) == Show::Line {
                shown += line;
                shown.push('\n');
            }
        };
        let status = place.run(argv, &self.environment, deadline, &mut line);
        print!("{shown}");
        let status = status.with_context(|| progress.hanging())?;
        Ok(reader.end(status == 0))
    }
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

/// Guests that are up at a time, roughly: each keeps a CPU busy while it boots.
fn threads() -> usize {
    std::thread::available_parallelism()
        .map_or(2, std::num::NonZero::get)
        .clamp(2, 4)
}
