//! What became of each mutant, kept in a file from which an interrupted run goes on.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What became of a mutant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub(super) enum Outcome {
    /// A test failed.
    Failed { program: String, test: String },
    /// The program of a test ended without a verdict.
    Crashed { program: String, test: String },
    /// A test took too long.
    Hung { program: String, test: String },
    /// All tests passed, and some of them came by.
    Survived,
    /// No test came by.
    Unreached,
}

impl Outcome {
    /// Whether a test noticed.
    pub(super) fn is_killed(&self) -> bool {
        !matches!(self, Self::Survived | Self::Unreached)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed { program, test } => write!(f, "killed by {program} {test}"),
            Self::Crashed { program, test } => write!(f, "killed: {program} {test} crashed"),
            Self::Hung { program, test } => write!(f, "killed: {program} {test} hung"),
            Self::Survived => write!(f, "SURVIVED"),
            Self::Unreached => write!(f, "SURVIVED, no test comes by"),
        }
    }
}

/// One line of the file.
#[derive(Serialize, Deserialize)]
struct LogLine {
    mutant: u32,
    #[serde(flatten)]
    outcome: Outcome,
}

/// All outcomes of one state of the sources.
pub(super) struct Outcomes {
    path: PathBuf,
    known: BTreeMap<u32, Outcome>,
}

impl Outcomes {
    /// Those that `path` holds already. A line that was cut off is tried again.
    pub(super) fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<LogLine>(line).ok());
        Self {
            known: lines.map(|line| (line.mutant, line.outcome)).collect(),
            path,
        }
    }

    pub(super) fn get(&self, mutant: u32) -> Option<&Outcome> {
        self.known.get(&mutant)
    }

    /// Notes what became of `mutant`.
    pub(super) fn add(&mut self, mutant: u32, outcome: Outcome) -> Result<()> {
        let line = LogLine {
            mutant,
            outcome: outcome.clone(),
        };
        let text = format!("{}\n", serde_json::to_string(&line)?);
        let append = || {
            File::options()
                .create(true)
                .append(true)
                .open(&self.path)?
                .write_all(text.as_bytes())
        };
        append().with_context(|| format!("cannot write {}", self.path.display()))?;
        self.known.insert(mutant, outcome);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_run_goes_on_behind_its_last_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outcomes");
        let failed = Outcome::Failed {
            program: "p".into(),
            test: "t".into(),
        };
        let mut outcomes = Outcomes::read(path.clone());
        for (mutant, outcome) in [
            (7, failed.clone()),
            (8, Outcome::Survived),
            (9, Outcome::Unreached),
        ] {
            outcomes.add(mutant, outcome).unwrap();
        }
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 5]).unwrap();
        let again = Outcomes::read(path);
        assert_eq!(again.get(7), Some(&failed));
        assert_eq!(again.get(8), Some(&Outcome::Survived));
        assert_eq!(again.get(9), None);
        assert!(failed.is_killed() && !Outcome::Unreached.is_killed());
    }
}
