//! The project's own commands: `cargo xtask check|test|bench|nested|demo`.
#![forbid(unsafe_code)]

mod bench;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "check, test, bench and demonstrate Levy")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure something; each bench runs its rival in the same run and writes JSON with --json FILE
    Bench(bench::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
    }
}
