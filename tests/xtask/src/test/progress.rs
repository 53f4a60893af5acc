//! Which tests of a program have not ended yet, for the message about one that hangs.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use super::Extent;

/// What Rust's test harness prints in the middle of a line that tells of a test.
const VERDICT: &str = " ... ";
const SLOW: &str = " has been running for over 60 seconds";

/// The tests of a program that have not ended.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// All that were going to run and have not ended; empty where that is not known.
    left: BTreeSet<String>,
    /// Those that the harness called slow, which have started.
    slow: BTreeSet<String>,
}

impl Progress {
    /// The tests that `program` is going to run, or `None` where the filter leaves none. Asks the program, which must run
    /// on this machine.
    pub(super) fn of(program: &Path, filter: Option<&str>) -> Option<Self> {
        let listed = Command::new(program)
            .args(["--list", "--format", "terse"])
            .args(filter)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        match listed {
            Ok(output) if output.status.success() => {
                let progress = Self::from_list(&String::from_utf8_lossy(&output.stdout));
                (!progress.left.is_empty()).then_some(progress)
            }
            // A program that cannot be asked will say itself what is wrong when it is run.
            Ok(_) | Err(_) => Some(Self::default()),
        }
    }

    fn from_list(text: &str) -> Self {
        let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
        Self {
            left: names.map(str::to_owned).collect(),
            slow: BTreeSet::new(),
        }
    }

    /// Takes in a line of the program's standard output.
    pub(super) fn line(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test ") else {
            return;
        };
        if let Some(name) = rest.strip_suffix(SLOW) {
            self.slow.insert(name.to_owned());
        } else if let Some((name, _)) = rest.split_once(VERDICT) {
            let name = name.strip_suffix(" - should panic").unwrap_or(name);
            self.left.remove(name);
            self.slow.remove(name);
        }
    }

    /// Says which tests hang: those known to have started, else all that have not ended.
    pub(super) fn hanging(&self) -> String {
        let names = if self.slow.is_empty() {
            &self.left
        } else {
            &self.slow
        };
        if names.is_empty() {
            return "all its tests have ended, but the program has not".into();
        }
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        format!("not ended: {}", names.join(", "))
    }
}

/// Arguments of a test program, besides the filter.
pub(super) fn arguments(extent: Extent) -> Vec<String> {
    let mut arguments = vec!["--show-output".to_owned()];
    if extent == Extent::Long {
        arguments.push("--include-ignored".into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "a: test\nb: test\nc::d: test\nbad: test\nbench: benchmark\n";

    #[test]
    fn tests_that_ended_are_not_named() {
        let mut progress = Progress::from_list(LIST);
        for line in [
            "running 4 tests",
            "test a ... ok",
            "test bad - should panic ... FAILED",
            "test c::d ... ignored, takes minutes",
        ] {
            progress.line(line);
        }
        assert_eq!(progress.hanging(), "not ended: b");
        progress.line("test b ... ok");
        assert!(progress.hanging().contains("all its tests have ended"));
    }

    #[test]
    fn a_test_known_to_have_started_is_the_one() {
        let mut progress = Progress::from_list(LIST);
        progress.line("test a has been running for over 60 seconds");
        progress.line("test b has been running for over 60 seconds");
        assert_eq!(progress.hanging(), "not ended: a, b");
        progress.line("test a ... ok");
        assert_eq!(progress.hanging(), "not ended: b");
    }
}
