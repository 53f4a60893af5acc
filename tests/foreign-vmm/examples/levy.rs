//! The other side of this package's tests: `levy host`, or one of Levy's simulated guests.

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
