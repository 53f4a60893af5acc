//! Building the mutants, and learning from the compiler which of them cannot be built.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::program::{MutatedPackage, MutatedProgram, PACKAGES};
use super::scratch::Scratch;
use crate::artifact::Artifact;
use crate::interrupt;

/// So many times points may be removed before the rest is expected to compile.
const ROUNDS: usize = 24;

/// A test program of a package.
#[derive(Debug, Clone)]
pub(super) struct TestProgram {
    pub(super) package: &'static str,
    pub(super) name: String,
    pub(super) file: PathBuf,
    /// Where cargo starts it.
    pub(super) folder: PathBuf,
}

/// A line of cargo's JSON output.
#[derive(Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
enum Line {
    CompilerMessage {
        message: Complaint,
    },
    CompilerArtifact(Artifact),
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Complaint {
    level: String,
    message: String,
    rendered: Option<String>,
    code: Option<Code>,
    spans: Vec<Span>,
    children: Vec<Complaint>,
}

/// The number of an error, such as E0382.
#[derive(Deserialize)]
struct Code {
    code: String,
}

#[derive(Deserialize)]
struct Span {
    file_name: PathBuf,
    byte_start: usize,
    byte_end: usize,
    is_primary: bool,
}

/// What one call of cargo said.
#[derive(Default)]
struct Said {
    errors: Vec<Complaint>,
    artifacts: Vec<Artifact>,
    success: bool,
}

/// Builds the tests of `packages`; points that do not compile are removed from `program`.
pub(super) fn build(
    program: &mut MutatedProgram,
    packages: &[MutatedPackage],
    scratch: &Scratch,
) -> Result<Vec<TestProgram>> {
    for package in packages {
        eprintln!("mutate: {}: which changes compile?", package.name);
        settle(program, scratch, &["check", "--lib", "-p", package.name])?;
    }
    let mut programs = Vec::new();
    for package in packages {
        eprintln!("mutate: {}: building its tests", package.name);
        let said = settle(program, scratch, &["test", "--no-run", "-p", package.name])?;
        programs.extend(said.artifacts.into_iter().filter_map(|artifact| {
            Some(TestProgram {
                package: package.name,
                name: artifact.target.name,
                file: artifact.executable.filter(|_| artifact.profile.test)?,
                folder: artifact.manifest_path.parent()?.to_owned(),
            })
        }));
    }
    Ok(programs)
}

/// Calls cargo until it succeeds, removing the points that are in the way.
fn settle(program: &mut MutatedProgram, scratch: &Scratch, args: &[&str]) -> Result<Said> {
    for _ in 0..ROUNDS {
        program.write(scratch)?;
        let said = cargo(scratch, args)?;
        if said.success {
            return Ok(said);
        }
        let mut guilty = BTreeSet::new();
        for error in &said.errors {
            let blamed = blame(program, error);
            // Summaries have no place: "aborting due to 3 previous errors".
            if blamed.is_empty() && !error.spans.is_empty() {
                bail!(
                    "not due to a change:\n{}",
                    error.rendered.as_deref().unwrap_or(&error.message)
                );
            }
            guilty.extend(blamed);
        }
        if guilty.is_empty() {
            bail!("cargo {} failed without an error in the sources", args.join(" "));
        }
        eprintln!("mutate: {} changes do not compile", guilty.len());
        program.remove(guilty);
    }
    bail!("after {ROUNDS} rounds there are still changes that do not compile");
}

/// The points in the places that an error names.
fn blame(program: &MutatedProgram, error: &Complaint) -> Vec<u32> {
    let blamed = |spans: Vec<&Span>| -> Vec<u32> {
        let each = spans.into_iter();
        each.flat_map(|span| program.blamed(&span.file_name, &(span.byte_start..span.byte_end)))
            .collect()
    };
    let found = suspects(error).into_iter().map(blamed);
    found
        .into_iter()
        .find(|blamed| !blamed.is_empty())
        .unwrap_or_default()
}

/// The places that an error names, the likeliest first: its own, what it labels, its notes. The use of a value that a
/// skipped statement would have set is the other way round: the statement is in the notes.
fn suspects(error: &Complaint) -> Vec<Vec<&Span>> {
    let of = |primary: bool| {
        error
            .spans
            .iter()
            .filter(move |span| span.is_primary == primary)
            .collect()
    };
    let notes = error.children.iter().flat_map(|note| &note.spans).collect();
    let mut suspects = vec![of(true), of(false), notes];
    let code = error.code.as_ref().map_or("", |code| &code.code);
    if ["E0381", "E0382"].contains(&code) {
        suspects.reverse();
    }
    suspects
}

fn cargo(scratch: &Scratch, args: &[&str]) -> Result<Said> {
    interrupt::check()?;
    let mut command = Command::new(env!("CARGO"));
    // Most of the time goes to survivors, which meet every test that comes by. Assertions and overflow checks stay.
    for package in PACKAGES {
        let optimised = format!("profile.dev.package.{}.opt-level=1", package.name);
        command.args(["--config", &optimised]);
    }
    command
        .current_dir(&scratch.tree)
        .args(args)
        .args(["--locked", "--message-format", "json"])
        .env("CARGO_TARGET_DIR", &scratch.build)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo")?;
    let mut said = Said::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            take(&mut said, &line.context("cannot read cargo's output")?);
        }
    }
    said.success = child.wait()?.success();
    interrupt::check()?;
    Ok(said)
}

fn take(said: &mut Said, line: &str) {
    match serde_json::from_str(line) {
        Ok(Line::CompilerMessage { message }) if message.level == "error" => said.errors.push(message),
        Ok(Line::CompilerArtifact(artifact)) => said.artifacts.push(artifact),
        _ => {}
    }
}

impl TestProgram {
    /// A name that no other program has.
    pub(super) fn title(&self) -> String {
        format!("{}::{}", self.package, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line of each place that is suspected, in order.
    fn suspected(code: &str) -> Vec<usize> {
        let span = |at: usize, primary: bool| {
            format!(
                r#"{{"file_name":"a.rs","byte_start":{at},"byte_end":{at},"is_primary":{primary},"x":1}}"#
            )
        };
        let note = format!(
            r#"{{"level":"note","message":"","rendered":null,"code":null,"spans":[{}],"children":[]}}"#,
            span(3, true)
        );
        let text = format!(
            r#"{{"reason":"compiler-message","message":{{"level":"error","message":"","rendered":null,
                 "code":{{"code":"{code}","explanation":null}},"spans":[{},{}],"children":[{note}]}}}}"#,
            span(1, true),
            span(2, false)
        );
        let mut said = Said::default();
        take(&mut said, &text.replace('\n', " "));
        let suspects = suspects(&said.errors[0]);
        suspects
            .into_iter()
            .flatten()
            .map(|span| span.byte_start)
            .collect()
    }

    #[test]
    fn an_error_is_looked_for_where_its_cause_is_likeliest() {
        assert_eq!(suspected("E0283"), [1, 2, 3]);
        assert_eq!(suspected("E0382"), [3, 2, 1]);
    }
}
