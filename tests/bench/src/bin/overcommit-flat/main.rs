//! Does a budget hold against guests that dirty memory as fast as a processor can?
//!
//! Guests without an operating system run in ring 3 on this machine's KVM, each in a process of its own under the real
//! manager. Half of each guest's memory is filled over and over, the other half is rewritten and checked page by page;
//! together they want twice the budget. Later half of them rest and come back, and the budget is cut. The rival is the
//! same without limits: what the guests take when no manager holds them back.

mod guest;
mod host;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Overcommitted memory under guests at full speed.
#[derive(Debug, Parser)]
struct Args {
    /// Number of guests
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=16))]
    guests: u16,
    /// Memory of each guest, MiB
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(64..=2048))]
    size: u64,
    /// Memory for everything, MiB
    #[arg(long, default_value_t = 1024)]
    budget: u64,
    /// Seconds of each of the four parts
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(3..=600))]
    seconds: u64,
    /// 6 seconds for each part
    #[arg(long)]
    quick: bool,
    /// Write the report here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw memory over time here, as SVG
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Folder for swap files
    #[arg(long, default_value = "/var/tmp")]
    swap: PathBuf,
    /// A guest of another one of these programs: its number and the run directory of its manager
    #[arg(long, hide = true, num_args = 2, value_names = ["NUMBER", "DIR"])]
    guest: Vec<String>,
    /// With --guest: no engine and no manager
    #[arg(long, hide = true)]
    alone: bool,
}

fn main() -> Result<ExitCode> {
    let mut args = Args::parse();
    if args.quick {
        args.seconds = 6;
    }
    if let [number, dir] = &args.guest[..] {
        guest::run(number.parse()?, dir.as_ref(), &args)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Err(reason) = ring3::available() {
        ring3::skip("overcommit-flat", &reason);
        return Ok(ExitCode::SUCCESS);
    }
    host::run(&args)
}
