//! `cargo xtask bench NAME`: builds the bench called NAME in release mode and runs it where it belongs.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// Where a bench can run.
enum Place {
    /// On this machine as it is.
    Native,
}

/// Every bench: its name on the command line, the binary in `tests/bench`, and where it runs.
const BENCHES: &[(&str, &str, Place)] = &[
    ("allocator", "allocator", Place::Native),
    ("balloon-device", "balloon-device", Place::Native),
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which bench; `list` names them all
    name: String,
    /// Options of the bench itself (`--json FILE`, `--help`, ...)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Some((_, binary, place)) = BENCHES.iter().find(|(name, ..)| *name == args.name) else {
        let names: Vec<_> = BENCHES.iter().map(|(name, ..)| *name).collect();
        bail!(
            "no bench is called {:?}; there are: {}",
            args.name,
            names.join(", ")
        );
    };
    match place {
        Place::Native => native(binary, &args.rest),
    }
}

fn native(binary: &str, rest: &[String]) -> Result<()> {
    let status = Command::new(env!("CARGO"))
        .args([
            "run",
            "--quiet",
            "--release",
            "--package",
            "bench",
            "--bin",
            binary,
            "--",
        ])
        .args(rest)
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the bench {binary} failed: {status}");
    }
    Ok(())
}
