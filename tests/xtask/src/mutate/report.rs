//! What a run found, for people and as JSON.

use std::path::PathBuf;

use serde::Serialize;

use super::outcome::{Outcome, Outcomes};
use super::point::Kind;
use super::program::Mutant;

/// Counts of one package, or of all.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    /// Tried in all.
    pub(super) mutants: u64,
    /// Noticed by a test, those that hang and crash included.
    pub(super) killed: u64,
    /// Killed only because a test took too long.
    pub(super) hung: u64,
    /// Killed because the program of a test ended without a verdict.
    pub(super) crashed: u64,
    /// Not noticed, the unreached ones included.
    pub(super) survived: u64,
    /// No test reaches it.
    pub(super) unreached: u64,
}

/// A mutant that no test noticed.
#[derive(Debug, Serialize)]
pub(super) struct Survivor {
    package: &'static str,
    file: PathBuf,
    line: usize,
    kind: Kind,
    original: String,
    mutated: String,
    reached: bool,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    seed: u64,
    sample: usize,
    /// Changes that could be made, of which the sample was drawn.
    population: usize,
    results: Results,
}

#[derive(Debug, Serialize)]
struct Results {
    #[serde(flatten)]
    all: Counts,
    packages: Vec<PackageCounts>,
    survivors: Vec<Survivor>,
}

#[derive(Debug, Serialize)]
struct PackageCounts {
    package: &'static str,
    #[serde(flatten)]
    counts: Counts,
}

impl Counts {
    fn add(&mut self, outcome: &Outcome) {
        self.mutants += 1;
        self.killed += u64::from(outcome.is_killed());
        self.survived += u64::from(!outcome.is_killed());
        self.hung += u64::from(matches!(outcome, Outcome::Hung { .. }));
        self.crashed += u64::from(matches!(outcome, Outcome::Crashed { .. }));
        self.unreached += u64::from(*outcome == Outcome::Unreached);
    }
}

impl Report {
    /// The report on those mutants of `sample` that were tried.
    pub(super) fn new(seed: u64, population: usize, sample: &[&Mutant], outcomes: &Outcomes) -> Self {
        let mut results = Results {
            all: Counts::default(),
            packages: Vec::new(),
            survivors: Vec::new(),
        };
        let tried = sample
            .iter()
            .filter_map(|mutant| Some((*mutant, outcomes.get(mutant.number)?)));
        for (mutant, outcome) in tried {
            results.all.add(outcome);
            results.of(mutant.package).add(outcome);
            if !outcome.is_killed() {
                results.survivors.push(Survivor::new(mutant, outcome));
            }
        }
        let place = |survivor: &Survivor| (survivor.package, survivor.file.clone(), survivor.line);
        results.survivors.sort_by_key(place);
        Self {
            seed,
            sample: sample.len(),
            population,
            results,
        }
    }
}

impl Results {
    fn of(&mut self, package: &'static str) -> &mut Counts {
        let at = self.packages.iter().position(|have| have.package == package);
        let at = at.unwrap_or_else(|| {
            let counts = Counts::default();
            self.packages.push(PackageCounts { package, counts });
            self.packages.len() - 1
        });
        &mut self.packages[at].counts
    }
}

impl Survivor {
    fn new(mutant: &Mutant, outcome: &Outcome) -> Self {
        Self {
            package: mutant.package,
            file: mutant.file.clone(),
            line: mutant.point.line,
            kind: mutant.point.kind,
            original: mutant.point.original.clone(),
            mutated: mutant.point.mutated.clone(),
            reached: *outcome != Outcome::Unreached,
        }
    }
}

impl std::fmt::Display for Survivor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mutated = if self.mutated.is_empty() {
            "nothing"
        } else {
            &self.mutated
        };
        let unreached = if self.reached { "" } else { " (no test comes by)" };
        let place = self.file.display();
        write!(
            f,
            "{place}:{}: {}  ->  {mutated}{unreached}",
            self.line, self.original
        )
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{:<16}{:>8}{:>8}{:>10}{:>10}{:>10}{:>11}",
            "package", "mutants", "killed", "by hang", "by crash", "survived", "unreached"
        )?;
        let all = [("all", &self.results.all)];
        let packages = self.results.packages.iter().map(|row| (row.package, &row.counts));
        for (name, row) in packages.chain(all) {
            writeln!(
                f,
                "{name:<16}{:>8}{:>8}{:>10}{:>10}{:>10}{:>11}",
                row.mutants, row.killed, row.hung, row.crashed, row.survived, row.unreached
            )?;
        }
        if !self.results.survivors.is_empty() {
            writeln!(f, "survivors:")?;
        }
        for survivor in &self.results.survivors {
            writeln!(f, "  {survivor}")?;
        }
        write!(
            f,
            "seed {}, {} of a sample of {} tried, drawn from {} changes",
            self.seed, self.results.all.mutants, self.sample, self.population
        )
    }
}
