//! Running single tests: once to see what each reaches and how long it takes, then for each mutant until one notices.

use std::collections::HashSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use super::compile::TestProgram;
use super::outcome::Outcome;
use super::workers;
use crate::interrupt;

/// Read by the injected functions.
const VARIABLE: &str = "LEVY_MUTANT";
/// How often a wait looks whether the test has ended.
const TICK: Duration = Duration::from_millis(5);
/// The first run of a test may take this long.
const FIRST: Duration = Duration::from_secs(300);
/// The cases of a property test that does not say how many it wants.
const CASES: &str = "256";
/// What the test harness ends with when a test failed.
const FAILED: i32 = 101;

/// A test, what it reaches, and how long it takes.
pub(super) struct SingleTest {
    pub(super) program: TestProgram,
    pub(super) name: String,
    pub(super) took: Duration,
    reached: HashSet<u32>,
}

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Passed,
    Failed,
    Crashed,
    TimedOut,
}

/// All tests of `programs` that pass unchanged, the fastest first. Those that do not are named. `folder` takes the
/// lists of what they reach meanwhile.
pub(super) fn learn(programs: &[TestProgram], folder: &Path) -> Result<Vec<SingleTest>> {
    let mut named = Vec::new();
    for program in programs {
        named.extend(names(program)?.into_iter().map(|name| (program, name)));
    }
    let numbered = named.into_iter().enumerate().collect();
    let learned = workers::map(numbered, |(at, (program, name))| {
        SingleTest::learn(program, name, &folder.join(format!("reached-{at}")))
    })?;
    let mut tests: Vec<SingleTest> = learned.into_iter().flatten().collect();
    tests.sort_by_key(|test| test.took);
    Ok(tests)
}

/// The names of the tests in `program`.
fn names(program: &TestProgram) -> Result<Vec<String>> {
    let output = Command::new(&program.file)
        .args(["--list", "--format", "terse"])
        .output()
        .with_context(|| format!("cannot start {}", program.title()))?;
    if !output.status.success() {
        bail!("{} does not list its tests: {}", program.title(), output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}

impl SingleTest {
    /// Runs the test without a change, and once more when it fails. `None`, and a word to the user, when it fails
    /// again, for example because the injected functions allocate.
    fn learn(program: &TestProgram, name: String, list: &Path) -> Result<Option<Self>> {
        let mut test = Self {
            program: program.clone(),
            name,
            took: Duration::ZERO,
            reached: HashSet::new(),
        };
        // None yet, the first time.
        let _ = fs::remove_file(list);
        for mutant in [&format!("reached:{}", list.display()), "none"] {
            let started = Instant::now();
            let end = test.run(mutant, FIRST)?;
            test.took = started.elapsed();
            // The second run writes none down.
            let text = fs::read_to_string(list).unwrap_or_default();
            test.reached
                .extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
            let _ = fs::remove_file(list);
            if end == End::Passed {
                return Ok(Some(test));
            }
        }
        eprintln!("mutate: {} fails unchanged; left out", test.title());
        Ok(None)
    }

    pub(super) fn title(&self) -> String {
        format!("{} {}", self.program.title(), self.name)
    }

    /// Whether the test reaches the place of mutant `number`.
    pub(super) fn reaches(&self, number: u32) -> bool {
        self.reached.contains(&number)
    }

    /// How long a run may take before it counts as hanging: five times what it took unchanged, and 20 s for a
    /// machine that does other things meanwhile.
    fn limit(&self) -> Duration {
        self.took * 5 + Duration::from_secs(20)
    }

    /// Runs the test with mutant `number`; `None` when it passes.
    pub(super) fn try_mutant(&self, number: u32) -> Result<Option<Outcome>> {
        let (program, test) = (self.program.title(), self.name.clone());
        Ok(match self.run(&number.to_string(), self.limit())? {
            End::Passed => None,
            End::Failed => Some(Outcome::Failed { program, test }),
            End::Crashed => Some(Outcome::Crashed { program, test }),
            End::TimedOut => Some(Outcome::Hung { program, test }),
        })
    }

    fn run(&self, mutant: &str, limit: Duration) -> Result<End> {
        let mut command = Command::new(&self.program.file);
        command
            .args(["--exact", &self.name])
            .current_dir(&self.program.folder)
            .env("CARGO_MANIFEST_DIR", &self.program.folder)
            .env(VARIABLE, mutant)
            .env("PROPTEST_CASES", CASES)
            // A failing property test need not look for its smallest case, nor remember it.
            .env("PROPTEST_MAX_SHRINK_ITERS", "0")
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let spawned = command.spawn();
        let mut family = Family(spawned.with_context(|| format!("cannot start {}", self.program.title()))?);
        // A change that eats memory is to be the kernel's first choice. Where that is refused, so be it.
        let _ = fs::write(format!("/proc/{}/oom_score_adj", family.0.id()), "1000");
        watch(&mut family, limit)
    }
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

/// Waits until the program ends or takes too long. Processes that it started do not count.
fn watch(family: &mut Family, limit: Duration) -> Result<End> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = family.0.try_wait()? {
            return Ok(match status.code() {
                Some(0) => End::Passed,
                Some(FAILED) => End::Failed,
                _ => End::Crashed,
            });
        }
        if Instant::now() > until {
            return Ok(End::TimedOut);
        }
        interrupt::check()?;
        std::thread::sleep(TICK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(script: &str, limit: Duration) -> End {
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(0);
        watch(&mut Family(command.spawn().unwrap()), limit).unwrap()
    }

    #[test]
    fn a_run_passes_fails_crashes_or_hangs() {
        let long = Duration::from_secs(60);
        assert_eq!(end("exit 0", long), End::Passed);
        assert_eq!(end("exit 101", long), End::Failed);
        assert_eq!(end("kill -ABRT $$", long), End::Crashed);
        assert_eq!(
            end("sleep 100 & sleep 100", Duration::from_millis(300)),
            End::TimedOut
        );
        assert_eq!(
            end("sleep 100 & exit 0", long),
            End::Passed,
            "its children do not count"
        );
    }

    #[test]
    fn a_program_names_its_tests_and_runs_one_of_them() {
        let program = TestProgram {
            package: "p",
            name: "t".into(),
            file: std::env::current_exe().unwrap(),
            folder: env!("CARGO_MANIFEST_DIR").into(),
        };
        let name = "mutate::workers::tests::all_is_done_until_something_fails".to_owned();
        assert!(names(&program).unwrap().contains(&name));
        let folder = tempfile::tempdir().unwrap();
        let test = SingleTest::learn(&program, name, &folder.path().join("list")).unwrap();
        assert_eq!(test.unwrap().try_mutant(1).unwrap(), None);
    }
}
