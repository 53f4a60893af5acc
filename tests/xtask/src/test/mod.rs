//! `cargo xtask test`: every test of the workspace, real guests included.

mod fuzz;
mod guests;
mod huge_pages;
mod native;
mod programs;
mod progress;
mod tally;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use tally::{SkipKind, Tally};

#[derive(clap::Args)]
pub(crate) struct TestArgs {
    /// Run the long tests too
    #[arg(long)]
    long: bool,
    /// Run real guests in the nested host even where this machine could run them itself
    #[arg(long)]
    nested: bool,
    /// Leave out this part; repeatable
    #[arg(long, value_enum)]
    without: Vec<Part>,
    /// Only tests with this in their names
    filter: Option<String>,
}

/// A part of the tests.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Tests that run on this machine as it is
    Native,
    /// Those of them that guard guest memory, in release builds
    Release,
    /// Fuzzing
    Fuzz,
    /// Tests with real guests
    Guests,
}

/// How much is tested.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Usual,
    Long,
}

impl TestArgs {
    fn extent(&self) -> Extent {
        if self.long { Extent::Long } else { Extent::Usual }
    }
}

pub(crate) fn run(args: &TestArgs) -> Result<ExitCode> {
    let mut all = Tally::default();
    for (part, name, tests) in [
        (
            Part::Native,
            "native tests",
            native::run as fn(&TestArgs) -> Result<Tally>,
        ),
        (Part::Release, "native tests in release", native::run_optimised),
        (Part::Fuzz, "fuzzing", fuzz::run),
        (Part::Guests, "real guests", guests::run),
    ] {
        if args.without.contains(&part) {
            continue;
        }
        let started = Instant::now();
        let tally = tests(args)?;
        eprintln!(
            "test: {name}: {tally} in {:.0} s",
            started.elapsed().as_secs_f64()
        );
        all.add(&tally);
    }
    Ok(conclude(&all, args.filter.as_deref()))
}

/// Tells the skips and the sum; fails for failures, where nothing ran, and in CI for tests that should have run.
fn conclude(all: &Tally, filter: Option<&str>) -> ExitCode {
    for skip in &all.skipped {
        println!("skipped {}: {}", skip.test, skip.reason);
    }
    let in_ci = std::env::var("CI").is_ok_and(|value| !value.is_empty() && value != "false");
    let missing = all.missing();
    if in_ci && missing > 0 {
        for skip in all.skipped.iter().filter(|skip| skip.kind == SkipKind::Missing) {
            println!("must not be skipped in CI: {}: {}", skip.test, skip.reason);
        }
    }
    if all.is_empty() {
        match filter {
            Some(filter) => println!(
                "no test that may run here has {filter:?} in its name: give a part of a name, without file or package"
            ),
            None => println!("nothing was tested: --without left out every part"),
        }
    }
    println!("{all}");
    if is_success(all, in_ci) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Whether tests ran, none failed, and in CI none was skipped that should have run.
fn is_success(all: &Tally, in_ci: bool) -> bool {
    all.failed == 0 && !all.is_empty() && !(in_ci && all.missing() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tally::Skip;

    fn tally(passed: u64, failed: u64, skips: &[SkipKind]) -> Tally {
        let skip = |kind: &SkipKind| Skip {
            test: "test".into(),
            reason: "reason".into(),
            kind: *kind,
        };
        Tally {
            passed,
            failed,
            skipped: skips.iter().map(skip).collect(),
        }
    }

    #[test]
    fn only_tests_that_ran_and_passed_are_a_success() {
        use SkipKind::{Declared, Missing};
        assert!(is_success(&tally(1, 0, &[]), true));
        assert!(is_success(&tally(1, 0, &[Declared]), true));
        assert!(is_success(&tally(1, 0, &[Missing]), false));
        assert!(!is_success(&tally(1, 0, &[Declared, Missing]), true));
        assert!(!is_success(&tally(1, 1, &[]), false));
        assert!(
            !is_success(&Tally::default(), false),
            "a filter that no test has in its name"
        );
    }
}
