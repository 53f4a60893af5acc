//! Reading the output of test programs as it comes: what passed, failed, and was skipped for which reason.
//!
//! The test harness of Rust knows no skipping at run time, so a test that cannot run here prints `skipped: REASON` (or
//! `SKIP NAME: REASON`) and returns; with `--show-output` the line comes back under the test's name. A reason that
//! starts with `impossible` says that no machine of this kind can run the test, so that nothing is missing; one that
//! starts with `elsewhere` that another part of the same command runs it, so that it does not count here.

/// Counts over any number of test programs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Names and reasons.
    pub(crate) skipped: Vec<Skip>,
}

/// A test that did not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skip {
    pub(crate) test: String,
    pub(crate) reason: String,
    pub(crate) kind: SkipKind,
}

/// Whether a skip means that something went untested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SkipKind {
    /// It runs on request (`--long`), or nowhere on this kind of machine.
    Declared,
    /// It should have run here.
    Missing,
}

/// What of a line people should see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    Line,
    Nothing,
}

/// Reads the output of one test program after the other.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    tally: Tally,
    section: Section,
    /// Skips of the program at hand, which its own count calls passed.
    disguised: u64,
}

#[derive(Debug, Default)]
enum Section {
    /// Progress, and what failing tests printed.
    #[default]
    Open,
    /// What passing tests printed; the one at hand by name, and whether its skip was noted already.
    Successes { test: String, noted: bool },
}

impl Reader {
    /// Takes the next line, without its newline.
    pub(crate) fn line(&mut self, line: &str) -> Show {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.section = Section::Open;
            self.result(counts);
            return Show::Line;
        }
        if line == "successes:" {
            self.section = Section::Successes {
                test: String::new(),
                noted: false,
            };
            return Show::Nothing;
        }
        if line == "failures:" {
            self.section = Section::Open;
        }
        match &mut self.section {
            Section::Open => {
                if let Some((test, reason)) = ignored(line) {
                    self.skip(test, reason, SkipKind::Declared);
                }
                Show::Line
            }
            Section::Successes { test, noted } => {
                if let Some(name) = line
                    .strip_prefix("---- ")
                    .and_then(|rest| rest.strip_suffix(" stdout ----"))
                {
                    *test = name.to_owned();
                    *noted = false;
                } else if let Some(reason) = reason(line).filter(|_| !*noted) {
                    *noted = true;
                    self.disguised += 1;
                    if reason.starts_with("elsewhere") {
                        return Show::Nothing;
                    }
                    let kind = if reason.starts_with("impossible") {
                        SkipKind::Declared
                    } else {
                        SkipKind::Missing
                    };
                    let test = test.clone();
                    self.skip(&test, reason, kind);
                }
                Show::Nothing
            }
        }
    }

    /// A program that could not be run counts as one failure.
    pub(crate) fn broken(&mut self) {
        self.tally.failed += 1;
    }

    /// What was read so far.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    fn skip(&mut self, test: &str, reason: &str, kind: SkipKind) {
        self.tally.skipped.push(Skip {
            test: test.to_owned(),
            reason: reason.to_owned(),
            kind,
        });
    }

    /// "ok. 12 passed; 0 failed; 1 ignored; ..."
    fn result(&mut self, counts: &str) {
        let count = |what: &str| -> u64 {
            let before = counts.split(what).next().unwrap_or_default();
            let digits = before.rsplit(' ').next().unwrap_or_default();
            digits.parse().unwrap_or(0)
        };
        self.tally.passed += count(" passed").saturating_sub(std::mem::take(&mut self.disguised));
        self.tally.failed += count(" failed");
    }
}

/// "test NAME ... ignored, REASON"
fn ignored(line: &str) -> Option<(&str, &str)> {
    let (test, verdict) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let reason = verdict.strip_prefix("ignored")?;
    let reason = reason.strip_prefix(", ").unwrap_or("runs with --long");
    Some((test, reason))
}

/// What follows "skipped: " or "SKIP NAME: ".
fn reason(line: &str) -> Option<&str> {
    if let Some(reason) = line.strip_prefix("skipped: ") {
        return Some(reason);
    }
    let (_, reason) = line.strip_prefix("SKIP ")?.split_once(": ")?;
    Some(reason)
}

impl Tally {
    /// Adds the counts of `other`.
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        for skip in &other.skipped {
            // A test that two parts know of and neither runs is one skip.
            if !self.skipped.contains(skip) {
                self.skipped.push(skip.clone());
            }
        }
    }

    /// Skips that should not have been.
    pub(crate) fn missing(&self) -> usize {
        let missing = |skip: &&Skip| skip.kind == SkipKind::Missing;
        self.skipped.iter().filter(missing).count()
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let skipped = self.skipped.len();
        write!(
            f,
            "{} passed, {} failed, {skipped} skipped",
            self.passed, self.failed
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 6 tests
test long_one ... ignored, takes minutes
test plain ... ok
test other ... ok
test cannot ... ok
test later ... ok
test bad ... FAILED

successes:

---- cannot stdout ----
SKIP cannot: no /dev/kvm
SKIP cannot: again

---- later stdout ----
skipped: elsewhere: the guests' part runs it

---- other stdout ----
some words
skipped: impossible without two sockets


successes:
    cannot
    later
    other
    plain

failures:

---- bad stdout ----
skipped: a failing test's words count for nothing

failures:
    bad

test result: FAILED. 4 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

    #[test]
    fn skips_are_told_from_passes() {
        let mut reader = Reader::default();
        let earlier = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        reader.line(earlier);
        let shown: Vec<_> = OUTPUT
            .lines()
            .filter(|line| reader.line(line) == Show::Line)
            .collect();
        assert_eq!(reader.tally().to_string(), "3 passed, 1 failed, 3 skipped");
        let skipped: Vec<_> = reader
            .tally()
            .skipped
            .iter()
            .map(|skip| skip.test.as_str())
            .collect();
        assert_eq!(skipped, ["long_one", "cannot", "other"]);
        assert_eq!(reader.tally().missing(), 1);
        assert!(
            shown.contains(&"---- bad stdout ----") && !shown.contains(&"some words"),
            "{shown:?}"
        );
    }
}
