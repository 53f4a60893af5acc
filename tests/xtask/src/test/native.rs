//! Tests that need no operating system in a guest: they run on this machine as it is.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::huge_pages::HugePages;
use super::programs::Program;
use super::progress::{Progress, arguments};
use super::tally::{Reader, Show, Tally};
use super::{Extent, TestArgs};
use crate::interrupt;
use crate::nested::Stream;
use crate::watched::{self, Ending, Limit};

/// A program of which no test ends within this time hangs. On an idle machine the longest takes a minute or two.
const SILENCE: Duration = Duration::from_secs(15 * 60);
const LONG_SILENCE: Duration = Duration::from_secs(3 * 60 * 60);

/// What is tested in release builds, too: what moves or counts guest memory, where an optimisation may change what
/// unsafe code, atomics and measurements do.
const OPTIMISED: &[&str] = &[
    "--release",
    "--package",
    "levy-page-share",
    "--package",
    "levy-balloon-driver",
    "--package",
    "levy-allocator",
    "--package",
    "levy-machine",
    "--package",
    "levy-manager",
    "--package",
    "levy-member",
    "--package",
    "levy-protocol",
    "--lib",
    "--tests",
];

/// Runs every test of the workspace, doctests included; those with real guests say that they run elsewhere.
pub(super) fn run(args: &TestArgs) -> Result<Tally> {
    let mut tally = programs(args, &["--workspace"])?;
    let mut doctests = Command::new(env!("CARGO"));
    doctests.args(["test", "--locked", "--workspace", "--doc", "--no-fail-fast", "--"]);
    tally.add(&one(args, "doctests", &mut doctests, Progress::default())?);
    Ok(tally)
}

/// Runs the tests that are worth it in release builds.
pub(super) fn run_optimised(args: &TestArgs) -> Result<Tally> {
    programs(args, OPTIMISED)
}

fn programs(args: &TestArgs, build: &[&str]) -> Result<Tally> {
    let _huge_pages = HugePages::provide();
    let mut tally = Tally::default();
    for program in Program::build(build)? {
        let mut command = Command::new(&program.executable);
        command
            .current_dir(&program.folder)
            .env("CARGO_MANIFEST_DIR", &program.folder);
        if let Some(progress) = Progress::of(&program.executable, args.filter.as_deref()) {
            tally.add(&one(args, &program.to_string(), &mut command, progress)?);
        }
    }
    Ok(tally)
}

/// Runs the tests of a program, named `name`, until they have ended or hang.
fn one(args: &TestArgs, name: &str, command: &mut Command, mut progress: Progress) -> Result<Tally> {
    interrupt::check()?;
    eprintln!("test: {name}");
    let silence = match args.extent() {
        Extent::Usual => SILENCE,
        Extent::Long => LONG_SILENCE,
    };
    command.args(arguments(args.extent())).args(&args.filter);
    let mut reader = Reader::of(name);
    let outcome = watched::run(command, Limit::Silence(silence), &mut |stream, line| {
        if stream == Stream::Err {
            reader.uncaptured(line);
            eprintln!("{line}");
            return;
        }
        progress.line(line);
        if reader.line(line) == Show::Line {
            println!("{line}");
        }
    })?;
    Ok(match outcome {
        Ending::Ended(status) => reader.end(status.success()),
        Ending::Killed => {
            let minutes = silence.as_secs() / 60;
            println!(
                "test: {name}: killed because no test ended for {minutes} min; {}",
                progress.hanging()
            );
            reader.hung()
        }
    })
}
