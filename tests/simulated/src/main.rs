//! A guest's process without a guest, or a manager.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: simulated::Command,
}

fn main() -> ExitCode {
    Args::parse().command.run()
}
