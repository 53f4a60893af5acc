//! Running the test programs: once to see what they reach and how long they take, then for each mutant until one of
//! them notices.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

use super::compile::TestProgram;
use super::outcome::Outcome;
use crate::interrupt;

/// Read by the injected functions.
const VARIABLE: &str = "LEVY_MUTANT";
/// How often a wait looks for Ctrl-C.
const TICK: Duration = Duration::from_millis(100);
/// The first run of a program may take this long.
const FIRST: Duration = Duration::from_secs(900);

/// A test program, what it reaches, and how long it takes.
pub(super) struct Suite {
    pub(super) program: TestProgram,
    pub(super) took: Duration,
    reached: HashSet<u32>,
    /// Tests that fail without a change, for example because the injected functions allocate.
    skipped: Vec<String>,
}

/// How a run ended.
enum End {
    Passed,
    Failed(String),
    Crashed,
    TimedOut,
}

impl Suite {
    /// Runs `program` without a change. `None`, and a word to the user, when it cannot pass even then.
    pub(super) fn learn(program: TestProgram, folder: &Path) -> Result<Option<Self>> {
        let list = folder.join("reached");
        // None yet, the first time.
        let _ = fs::remove_file(&list);
        let mut suite = Self {
            program,
            took: Duration::ZERO,
            reached: HashSet::new(),
            skipped: Vec::new(),
        };
        let started = Instant::now();
        let recording = format!("reached:{}", list.display());
        let end = suite.run(&recording, FIRST, Halt::Never)?;
        suite.took = started.elapsed();
        let text = fs::read_to_string(&list).unwrap_or_default();
        suite.reached = text.lines().filter_map(|line| line.parse().ok()).collect();
        if matches!(end, End::Passed) {
            return Ok(Some(suite));
        }
        suite.retry()
    }

    /// Without the tests that fail.
    fn retry(mut self) -> Result<Option<Self>> {
        for _ in 0..8 {
            let started = Instant::now();
            let end = self.run("none", FIRST, Halt::AtFailure)?;
            match end {
                End::Passed => {
                    self.took = started.elapsed();
                    return Ok(Some(self));
                }
                End::Failed(test) => {
                    eprintln!(
                        "mutate: {}: {test} fails unchanged; left out",
                        self.program.title()
                    );
                    self.skipped.push(test);
                }
                End::Crashed | End::TimedOut => break,
            }
        }
        eprintln!(
            "mutate: {} does not pass unchanged; left out",
            self.program.title()
        );
        Ok(None)
    }

    /// Whether the program reaches the place of mutant `number`.
    pub(super) fn reaches(&self, number: u32) -> bool {
        self.reached.contains(&number)
    }

    /// How long a run may take before it counts as hanging: five times what it took unchanged, and 20 s for a
    /// machine that does other things meanwhile.
    fn limit(&self) -> Duration {
        self.took * 5 + Duration::from_secs(20)
    }

    /// Runs the program with mutant `number` until the first failure; `None` when it passes.
    pub(super) fn try_mutant(&self, number: u32) -> Result<Option<Outcome>> {
        let program = self.program.title();
        Ok(
            match self.run(&number.to_string(), self.limit(), Halt::AtFailure)? {
                End::Passed => None,
                End::Failed(test) => Some(Outcome::Failed { program, test }),
                End::Crashed => Some(Outcome::Crashed { program }),
                End::TimedOut => Some(Outcome::Hung { program }),
            },
        )
    }

    fn run(&self, mutant: &str, limit: Duration, halt: Halt) -> Result<End> {
        let mut command = Command::new(self.program.path());
        for test in &self.skipped {
            command.args(["--skip", test]);
        }
        if !self.skipped.is_empty() {
            command.arg("--exact");
        }
        command
            .current_dir(&self.program.folder)
            .env("CARGO_MANIFEST_DIR", &self.program.folder)
            .env(VARIABLE, mutant)
            // A failing property test need not look for its smallest case, nor remember it.
            .env("PROPTEST_MAX_SHRINK_ITERS", "0")
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0);
        let spawned = command.spawn();
        let mut family = Family(spawned.with_context(|| format!("cannot start {}", self.program.title()))?);
        // A change that eats memory is to be the kernel's first choice. Where that is refused, so be it.
        let _ = fs::write(format!("/proc/{}/oom_score_adj", family.0.id()), "1000");
        watch(&mut family, limit, halt)
    }
}

/// Whether a run ends at its first failure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Halt {
    AtFailure,
    Never,
}

/// A test program and the processes that it started. All of them end when dropped.
struct Family(Child);

impl Drop for Family {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.0.id().cast_signed()) {
            // The group may be empty already.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

/// Reads what the test harness says until the program ends, fails or takes too long.
fn watch(family: &mut Family, limit: Duration, halt: Halt) -> Result<End> {
    let lines = lines_of(&mut family.0)?;
    let until = Instant::now() + limit;
    let mut failed = None;
    loop {
        interrupt::check()?;
        match lines.recv_timeout(TICK) {
            Ok(line) => {
                if let Some(test) = failure(&line) {
                    failed = Some(test.to_owned());
                    if halt == Halt::AtFailure {
                        break;
                    }
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if Instant::now() > until {
            return Ok(End::TimedOut);
        }
        // A process that outlives the program may hold its output open.
        if lines_are_over(&mut family.0)? {
            break;
        }
    }
    if let Some(test) = failed {
        return Ok(End::Failed(test));
    }
    conclude(family, &lines, until)
}

fn lines_are_over(child: &mut Child) -> Result<bool> {
    Ok(child.try_wait()?.is_some())
}

/// The program closed its output or ended: what is left to read, and its status.
fn conclude(family: &mut Family, lines: &Receiver<String>, until: Instant) -> Result<End> {
    loop {
        if let Some(status) = family.0.try_wait()? {
            let mut rest = std::iter::from_fn(|| lines.recv_timeout(TICK).ok());
            let failed = rest.find_map(|line| failure(&line).map(str::to_owned));
            return Ok(match failed {
                Some(test) => End::Failed(test),
                None if status.success() => End::Passed,
                None => End::Crashed,
            });
        }
        if Instant::now() > until {
            return Ok(End::TimedOut);
        }
        interrupt::check()?;
        std::thread::sleep(TICK);
    }
}

fn lines_of(child: &mut Child) -> Result<Receiver<String>> {
    let stdout = child.stdout.take().context("no standard output")?;
    let (tell, told) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    Ok(told)
}

/// The test that a line of the harness says failed.
fn failure(line: &str) -> Option<&str> {
    let test = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
    Some(test.split(" - should panic").next().unwrap_or(test))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_read_from_the_harness() {
        assert_eq!(failure("test a::b ... FAILED"), Some("a::b"));
        assert_eq!(failure("test a::b - should panic ... FAILED"), Some("a::b"));
        assert_eq!(failure("test a::b ... ok"), None);
        assert_eq!(failure("test result: FAILED. 1 passed"), None);
    }

    fn end(script: &str, limit: Duration) -> End {
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .stdout(Stdio::piped())
            .process_group(0);
        watch(&mut Family(command.spawn().unwrap()), limit, Halt::AtFailure).unwrap()
    }

    #[test]
    fn a_run_passes_fails_crashes_or_hangs() {
        let long = Duration::from_secs(60);
        assert!(matches!(end("echo 'test a ... ok'", long), End::Passed));
        assert!(matches!(end("echo 'test a ... FAILED'; sleep 100", long), End::Failed(test) if test == "a"));
        assert!(matches!(end("kill -ABRT $$", long), End::Crashed));
        assert!(matches!(
            end("sleep 100 & sleep 100", Duration::from_millis(300)),
            End::TimedOut
        ));
        assert!(
            matches!(end("sleep 100 & exit 0", long), End::Passed),
            "its children do not count"
        );
    }
}
