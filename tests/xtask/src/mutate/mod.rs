//! `cargo xtask mutate`: do the tests notice when the program is wrong?
//!
//! All changes are built into one copy of the program at once, each behind a question to a small injected function
//! ([`injected/levy_mutants.rs`](injected)); an environment variable chooses one when a test program starts. So a
//! sample of hundreds costs one build.
//!
//! - [`finder`] finds the [`point`]s of a source file, [`rewrite`] puts them in, [`program`] numbers them all.
//! - [`scratch`] is the copy of the workspace; [`compile`] builds it and drops points that the compiler refuses.
//! - [`suite`] runs single tests, [`workers`] several at a time; [`outcome`] remembers what became of each mutant, [`report`] tells it.

mod compile;
mod finder;
mod outcome;
mod point;
mod program;
mod report;
mod rewrite;
mod sample;
mod scratch;
mod suite;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use outcome::{Outcome, Outcomes};
use program::{Mutant, MutatedProgram};
use report::Report;
use scratch::Scratch;
use suite::SingleTest;

/// Where the same sample comes from when nothing else is said.
const SEED: u64 = 1;

#[derive(clap::Args)]
#[command(after_help = "\
One mutant is one small change: a condition the other way round, < for <=, one side of && or || ignored, a call or an
assignment left out, a number one off, None for Some. A mutant is killed when a test of its own package fails, crashes,
or takes five times as long as without it and 20 s more. Survivors are what the tests do not say; each is worth a test,
or a reason. See docs/testing.md.

A run that was interrupted goes on where it stopped as long as the sources are the same: give the same seed.")]
pub(crate) struct MutateArgs {
    /// Which sample; the same seed draws the same mutants from the same sources
    #[arg(long, default_value_t = SEED)]
    seed: u64,
    /// How many mutants to try
    #[arg(long, default_value_t = 300)]
    sample: usize,
    /// Only this package: levy-allocator, levy-balloon-driver, levy-page-share, levy-member or levy-manager; repeatable
    #[arg(long, value_name = "PACKAGE")]
    only: Vec<String>,
    /// Stop after this many minutes of trying mutants, with a report on those that were tried
    #[arg(long, default_value_t = 120)]
    minutes: u64,
    /// Write the report as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only list the mutants of the sample
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(args: &MutateArgs) -> Result<()> {
    let packages = program::chosen(&args.only)?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    let root = root.context("the workspace is gone")?;
    let scratch = Scratch::of(root)?;
    let mut program = MutatedProgram::read(root, &packages)?;
    let state = format!("{:016x}", program.fingerprint());
    let removed = scratch.folder.join(format!("removed-{state}.json"));
    if let Ok(text) = fs::read_to_string(&removed) {
        program.remove(serde_json::from_str::<BTreeSet<u32>>(&text).unwrap_or_default());
    }
    let tests = compile::build(&mut program, &packages, &scratch)?;
    let text = serde_json::to_string(program.removed())?;
    fs::write(&removed, text).with_context(|| format!("cannot write {}", removed.display()))?;

    let population = program.mutants().count();
    let sample = sample::draw(program.mutants().collect(), args.seed, args.sample);
    println!(
        "mutate: seed {}: {} of {population} changes",
        args.seed,
        sample.len()
    );
    if args.list {
        sample.iter().for_each(|mutant| println!("{}", describe(mutant)));
        return Ok(());
    }
    let outcomes = Outcomes::read(scratch.folder.join(format!("outcomes-{state}.jsonl")));
    eprintln!("mutate: the tests, unchanged");
    let tests = suite::learn(&tests, &scratch.folder)?;
    let alone: f64 = tests.iter().map(|test| test.took.as_secs_f64()).sum();
    eprintln!("mutate: {} tests, {alone:.0} s one after the other", tests.len());
    let trial = Trial {
        tests,
        until: Instant::now() + Duration::from_secs(args.minutes.saturating_mul(60)),
        outcomes: Mutex::new(outcomes),
    };
    let tried = trial.all(&sample);
    let outcomes = trial
        .outcomes
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    // Whatever ended the trial, what is known is told.
    let report = Report::new(args.seed, population, &sample, &outcomes);
    println!("{report}");
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    tried
}

fn describe(mutant: &Mutant) -> String {
    let point = &mutant.point;
    let mutated = if point.mutated.is_empty() {
        "nothing"
    } else {
        &point.mutated
    };
    let place = mutant.file.display();
    format!("{place}:{}: {}  ->  {mutated}", point.line, point.original)
}

/// Trying mutants, for as long as there is time.
struct Trial {
    /// The fastest first.
    tests: Vec<SingleTest>,
    until: Instant,
    outcomes: Mutex<Outcomes>,
}

impl Trial {
    fn all(&self, sample: &[&Mutant]) -> Result<()> {
        let unknown = |mutant: &Mutant| self.outcomes().get(mutant.number).is_none();
        let open = (1..).zip(sample).filter(|(_, mutant)| unknown(mutant));
        workers::map(open.collect(), |(at, mutant): (usize, &&Mutant)| {
            if Instant::now() > self.until {
                return Ok(());
            }
            let started = Instant::now();
            let outcome = self.one(mutant)?;
            let took = started.elapsed().as_secs_f64();
            let of = sample.len();
            println!("{at}/{of} {}: {outcome} ({took:.1} s)", describe(mutant));
            self.outcomes().add(mutant.number, outcome)
        })?;
        let left = sample.iter().filter(|mutant| unknown(mutant)).count();
        if left > 0 {
            eprintln!("mutate: time was up with {left} mutants left; run again to go on");
        }
        Ok(())
    }

    fn one(&self, mutant: &Mutant) -> Result<Outcome> {
        let own = |test: &&SingleTest| test.program.package == mutant.package && test.reaches(mutant.number);
        let mut outcome = Outcome::Unreached;
        for test in self.tests.iter().filter(own) {
            match test.try_mutant(mutant.number)? {
                Some(killed) => return Ok(killed),
                None => outcome = Outcome::Survived,
            }
        }
        Ok(outcome)
    }

    fn outcomes(&self) -> MutexGuard<'_, Outcomes> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
