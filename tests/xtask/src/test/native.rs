//! Tests that need no operating system in a guest: they run on this machine as it is.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::huge_pages::HugePages;
use super::tally::{Reader, Show, Tally};
use super::{Args, Extent};
use crate::interrupt;

/// Runs every test of the workspace, doctests included; those with real guests say that they run elsewhere.
pub(super) fn run(args: &Args) -> Result<Tally> {
    let _huge_pages = HugePages::provide();
    interrupt::check()?;
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--locked", "--no-fail-fast", "--workspace"]);
    command.args(["--", "--show-output"]);
    if args.extent() == Extent::Long {
        command.arg("--include-ignored");
    }
    command.args(&args.filter);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let mut reader = Reader::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("cannot read cargo's output")?;
            if reader.line(&line) == Show::Line {
                println!("{line}");
            }
        }
    }
    let status = child.wait()?;
    // Tests that failed are in the count; a build that failed or a test program that crashed is not.
    if !status.success() && reader.tally().failed == 0 {
        eprintln!("test: cargo test ended with {status}");
        reader.broken();
    }
    Ok(reader.tally().clone())
}
