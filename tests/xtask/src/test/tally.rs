//! Reading the output of test programs as it comes: what passed, failed, and was skipped for which reason.
//!
//! The test harness of Rust knows no skipping at run time, so a test that cannot run here prints `skipped: REASON` and
//! returns; with `--show-output` the line comes back under the test's name. A test that can run but for a part prints
//! `skipped in part: REASON`, and counts as skipped, too: it did not test what its name says. A reason that starts with
//! `impossible` says that no machine of this kind can run the test, so that nothing is missing; one that starts with
//! `elsewhere` that another part of the same command runs it, so that it does not count here.
//!
//! A process that a test starts prints past the harness. Its skip counts all the same, under the program's name.

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

/// Reads the output of a test program.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    program: String,
    tally: Tally,
    section: Section,
    /// Skips that the harness counts as passed.
    disguised: u64,
    /// Whether the program said how its tests went.
    has_result: bool,
}

#[derive(Debug, Default)]
enum Section {
    /// Progress.
    #[default]
    Open,
    /// What passing tests printed; the one at hand by name, and whether its skip was noted already.
    Successes { test: String, noted: bool },
    /// What failing tests printed.
    Failures,
}

impl Reader {
    /// A reader of what the program with this name prints.
    pub(crate) fn of(program: &str) -> Self {
        Self {
            program: program.to_owned(),
            ..Self::default()
        }
    }

    /// Takes the next line of standard output, without its newline.
    pub(crate) fn line(&mut self, line: &str) -> Show {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.section = Section::Open;
            self.result(counts);
            return Show::Line;
        }
        match line {
            "successes:" => {
                self.section = Section::Successes {
                    test: String::new(),
                    noted: false,
                };
                return Show::Nothing;
            }
            "failures:" => self.section = Section::Failures,
            _ => {}
        }
        match &mut self.section {
            Section::Failures => Show::Line,
            Section::Open => {
                if let Some((test, reason)) = ignored(line) {
                    self.skip(test, reason, SkipKind::Declared);
                }
                self.uncaptured(line);
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
                    let test = test.clone();
                    self.disguised(&test, reason);
                }
                Show::Nothing
            }
        }
    }

    /// Takes the next line of standard error or of another stream that the harness does not capture.
    pub(crate) fn uncaptured(&mut self, line: &str) {
        if let Some(reason) = reason(line) {
            let test = format!("a process of {}", self.program);
            self.disguised(&test, reason);
        }
    }

    /// The counts, once the program has ended; `well` if with status 0.
    pub(crate) fn end(mut self, well: bool) -> Tally {
        if !self.has_result {
            eprintln!("test: {} ended without the result of its tests", self.program);
            self.tally.failed += 1;
        } else if !well && self.tally.failed == 0 {
            eprintln!("test: {} failed after its tests", self.program);
            self.tally.failed += 1;
        }
        self.tally
    }

    /// The counts, once the program was killed because its tests hang.
    pub(crate) fn hung(mut self) -> Tally {
        self.tally.failed += 1;
        self.tally
    }

    /// A test that the harness will count as passed was skipped.
    fn disguised(&mut self, test: &str, reason: &str) {
        self.disguised += 1;
        if reason.starts_with("elsewhere") {
            return;
        }
        let kind = if reason.starts_with("impossible") {
            SkipKind::Declared
        } else {
            SkipKind::Missing
        };
        self.skip(test, reason, kind);
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
        self.has_result = true;
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

/// What follows "skipped: " or "skipped in part: ".
fn reason(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let whole = line.strip_prefix("skipped: ");
    whole.or_else(|| line.strip_prefix("skipped in part: "))
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

    /// Whether no test was run or skipped.
    pub(crate) fn is_empty(&self) -> bool {
        self.passed == 0 && self.failed == 0 && self.skipped.is_empty()
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
running 7 tests
test long_one ... ignored, takes minutes
test plain ... ok
test other ... ok
test cannot ... ok
test half ... ok
test later ... ok
test bad ... FAILED

successes:

---- cannot stdout ----
skipped: no /dev/kvm
skipped: again

---- half stdout ----
skipped in part: no more than half of it

---- later stdout ----
skipped: elsewhere: the guests' part runs it

---- other stdout ----
some words
skipped: impossible without two sockets


successes:
    cannot
    half
    later
    other
    plain

failures:

---- bad stdout ----
skipped: a failing test's words count for nothing

failures:
    bad

test result: FAILED. 5 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

    fn names(tally: &Tally) -> Vec<&str> {
        tally.skipped.iter().map(|skip| skip.test.as_str()).collect()
    }

    fn read(text: &str) -> (Reader, Vec<&str>) {
        let mut reader = Reader::of("program");
        let shown = text
            .lines()
            .filter(|line| reader.line(line) == Show::Line)
            .collect();
        (reader, shown)
    }

    #[test]
    fn skips_are_told_from_passes() {
        let (reader, shown) = read(OUTPUT);
        let tally = reader.end(false);
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 4 skipped");
        assert_eq!(names(&tally), ["long_one", "cannot", "half", "other"]);
        assert_eq!(tally.missing(), 2);
        assert!(
            shown.contains(&"---- bad stdout ----") && !shown.contains(&"some words"),
            "{shown:?}"
        );
    }

    #[test]
    fn skips_of_children_count_wherever_they_are_printed() {
        let mut reader = Reader::of("program");
        reader.line("skipped: to standard output");
        reader.uncaptured("  skipped: to standard error");
        reader.uncaptured("nothing of the kind was skipped: really");
        reader.line("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        let tally = reader.end(true);
        assert_eq!(tally.to_string(), "1 passed, 0 failed, 2 skipped");
        assert_eq!(tally.missing(), 2);
        assert_eq!(tally.skipped[0].test, "a process of program");
    }

    #[test]
    fn a_program_without_a_result_failed() {
        let (reader, _) = read("running 2 tests\ntest one ... ok\n");
        assert_eq!(reader.end(true).failed, 1);
        let (reader, _) = read("test result: ok. 1 passed; 0 failed; 0 ignored");
        assert_eq!(reader.end(false).to_string(), "1 passed, 1 failed, 0 skipped");
        let (reader, _) = read("running 2 tests\ntest one ... ok\n");
        assert_eq!(reader.hung().failed, 1);
    }
}
