//! `cargo xtask check`: everything that can be said about the sources without running them.

mod circles;
mod dependencies;
mod layers;
mod licence;
mod prose;
mod rust_version;
mod sources;

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::committed;
use crate::interrupt;
use crate::metadata::Metadata;

pub(crate) fn run() -> Result<()> {
    let metadata = Metadata::read()?;
    let mut failed = Vec::new();
    let mut step = |name: &'static str, check: &dyn Fn() -> Result<Vec<String>>| -> Result<()> {
        interrupt::check()?;
        eprintln!("check: {name} ...");
        let started = Instant::now();
        let complaints = check().with_context(|| format!("cannot check {name}"))?;
        for complaint in &complaints {
            eprintln!("  {complaint}");
        }
        let verdict = if complaints.is_empty() { "ok" } else { "FAILED" };
        eprintln!(
            "check: {name} {verdict} ({:.1} s)",
            started.elapsed().as_secs_f64()
        );
        if !complaints.is_empty() {
            failed.push(name);
        }
        Ok(())
    };
    step("sources", &|| sources::complaints(metadata.root()))?;
    step("prose", &|| prose::complaints(metadata.root()))?;
    step("layers", &|| layers::complaints(&metadata))?;
    step("circles", &|| {
        circles::complaints(metadata.root(), &committed::files(metadata.root(), &["*.rs"])?)
    })?;
    step("dependencies", &|| dependencies::complaints(&metadata))?;
    step("format", &|| cargo(&["fmt", "--all", "--check"]))?;
    step("clippy", &|| {
        cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ])
    })?;
    step("rust-version", &|| rust_version::complaints(&metadata))?;
    step("docs", &|| {
        cargo(&["doc", "--workspace", "--lib", "--no-deps", "--locked"])
    })?;
    if !failed.is_empty() {
        bail!("these checks failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Runs cargo, which tells people itself what it dislikes.
fn cargo(args: &[&str]) -> Result<Vec<String>> {
    let status = Command::new(env!("CARGO"))
        .args(args)
        .env("RUSTDOCFLAGS", "-D warnings")
        .status()
        .context("cannot start cargo")?;
    if status.success() {
        return Ok(Vec::new());
    }
    Ok(vec![format!("`cargo {}` ended with {status}", args.join(" "))])
}
