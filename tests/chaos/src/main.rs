//! Managers and guests' processes that are killed, stalled, starved and lied to, while every byte is checked.
//!
//! Each fleet has a run directory, a manager and a few guests' processes with real memory, engines and sockets
//! ([`simulated`]). A seed decides what is done to it. All the time, and after everything that is done, it is looked at:
//! no byte may be wrong, no budget exceeded without a reason, no process may break, stay away, or be left behind. What was
//! done is counted, so that a harness that does nothing shows. `docs/testing.md` explains actions and invariants.
#![forbid(unsafe_code)]

mod assigned;
mod budget;
mod clock;
mod course;
mod deeds;
mod fleet;
mod guest;
mod hunger;
mod impostor;
mod later;
mod leash;
mod look;
mod manager;
mod memory;
mod quota;
mod refusal;
mod run;
mod strain;
mod tally;
mod thief;
mod witness;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(
    name = "chaos",
    about = "Kill, stall, starve and mislead managers and guests; check every byte"
)]
struct Cli {
    #[command(flatten)]
    run: run::Args,
    #[command(subcommand)]
    process: Option<Part>,
}

/// What this program is when it starts itself.
#[derive(clap::Subcommand)]
enum Part {
    /// Another program that ends with this one
    #[command(hide = true)]
    Leash(Box<leash::Leash>),
    /// A process that is not the guest that it says it is
    #[command(hide = true)]
    Impostor(impostor::Impostor),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.process {
        Some(Part::Leash(leash)) => leash.run(),
        Some(Part::Impostor(impostor)) => impostor.run(),
        None => cli.run.run(),
    };
    done.unwrap_or_else(|error| {
        eprintln!("chaos: {error:#}");
        ExitCode::from(1)
    })
}
