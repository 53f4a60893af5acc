//! `cargo xtask chaos`: kill, stall, starve and mislead managers and guests' processes, and check every byte.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::guest_system::release_binary;
use crate::interrupt;

#[derive(clap::Args)]
pub(crate) struct ChaosArgs {
    /// Options of the harness: --kills N, --seed N, --fleets N, --minutes N, --quick, --json FILE, --verbose, --help
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Builds `levy` and the harness, and lets it manage with the real program.
pub(crate) fn run(args: &ChaosArgs) -> Result<ExitCode> {
    let levy = release_binary("levy", "levy")?;
    let harness = release_binary("chaos", "chaos")?;
    // Ctrl-C reaches the harness, too, which then ends by itself and leaves nothing.
    let status = Command::new(harness)
        .arg("--levy")
        .arg(levy)
        .args(&args.rest)
        .status()
        .context("cannot start the harness")?;
    interrupt::check()?;
    Ok(status.code().map_or(ExitCode::FAILURE, |code| {
        ExitCode::from(u8::try_from(code).unwrap_or(1))
    }))
}
