//! `cargo xtask deny`: licences, bans, sources and advisories, by cargo-deny where it is installed.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

#[derive(clap::Args)]
pub(crate) struct DenyArgs {
    /// What to check instead of everything: advisories, bans, licenses, sources. Advisories need the network
    #[arg(value_name = "WHICH")]
    which: Vec<String>,
}

/// Runs cargo-deny with `deny.toml`. Not a part of `check`: building it takes minutes, and its advisories come over the
/// network.
pub(crate) fn run(args: &DenyArgs) -> Result<ExitCode> {
    let status = Command::new("cargo-deny")
        .args(["--locked", "check"])
        .args(&args.which)
        .status()
        .context("cannot start cargo-deny; install it with `cargo install cargo-deny --locked`")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
