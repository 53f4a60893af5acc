//! Simulates a fleet under the real planner, states and ladder.
//!
//! `cargo run -p levy-allocator --example simulate -- FLEET.toml [--json FILE] [--svg FILE]`. The same fleet and seed give
//! the same run. Fleets are in `allocator/examples/fleets`.
#![forbid(unsafe_code)]

mod chart;
mod cost;
mod dice;
mod fleet_file;
mod guest;
mod host;
mod record;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use serde::Serialize;

use fleet_file::{Cheat, FleetFile, GuestPart};
use host::Host;
use record::{Record, Recorder};

#[derive(Parser)]
#[command(name = "simulate", about = "A fleet of guests under the real memory policy")]
struct Args {
    /// The fleet, in TOML
    #[arg(value_name = "FLEET.toml")]
    fleet: PathBuf,
    /// Write everything to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the run into FILE
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// A seed other than the fleet's
    #[arg(long)]
    seed: Option<u64>,
    /// A tax other than the fleet's, 0 to below 1
    #[arg(long)]
    tax: Option<f64>,
    /// Also run this many seeds from the first on, and say how well estimates followed rises
    #[arg(long, value_name = "COUNT")]
    seeds: Option<u64>,
}

fn main() -> ExitCode {
    match simulate(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("simulate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn simulate(args: &Args) -> Result<()> {
    let mut fleet = FleetFile::read(&args.fleet)?;
    fleet.seed = args.seed.unwrap_or(fleet.seed);
    fleet.host.tax = args.tax.unwrap_or(fleet.host.tax);
    let record = run(&fleet, fleet.seed)?;
    let gains = gains(&fleet)?;
    table::print(&record, &gains);
    let rises = args
        .seeds
        .map(|count| table::Rises::over(&fleet, count))
        .transpose()?;
    if let Some(rises) = &rises {
        println!("{rises}");
    }
    if let Some(path) = &args.json {
        let json = serde_json::json!({"run": record, "gains": gains, "rises_over_seeds": rises});
        write(path, &(serde_json::to_string(&json)? + "\n"))?;
    }
    if let Some(path) = &args.svg {
        chart::draw(&record, path)?;
    }
    Ok(())
}

/// The whole run of `fleet` with `seed`.
fn run(fleet: &FleetFile, seed: u64) -> Result<Record> {
    let mut host = Host::new(fleet, seed)?;
    let mut recorder = Recorder::new(&host);
    let mut said = Instant::now();
    for now in 0..fleet.duration_s {
        host.tick(now)?;
        recorder.observe(now, &host);
        if said.elapsed() > Duration::from_secs(2) {
            eprintln!("{now} of {} seconds simulated", fleet.duration_s);
            said = Instant::now();
        }
    }
    Ok(recorder.finish(&fleet.title, seed, &mut host))
}

/// What each kind of cheat gains when it alone cheats, over itself when all guests are honest; mean over some seeds.
fn gains(fleet: &FleetFile) -> Result<Vec<Option<Gain>>> {
    let gain = |(kind, guest): (usize, &GuestPart)| {
        let cheats = guest.cheat != Cheat::None;
        cheats.then(|| Gain::of(fleet, kind)).transpose()
    };
    fleet.guests.iter().enumerate().map(gain).collect()
}

/// What cheating brings, as parts of what honesty would have brought.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Gain {
    /// In what it is entitled to.
    target: f64,
    /// In what it holds.
    held: f64,
}

impl Gain {
    /// Runs over which a gain is the mean: one run's sampling noise is larger than most gains.
    const SEEDS: u64 = 10;

    fn of(fleet: &FleetFile, kind: usize) -> Result<Self> {
        eprintln!(
            "{}: {} runs honest and cheating",
            fleet.guests[kind].name,
            2 * Self::SEEDS
        );
        let (mut honest, mut cheated) = (Self::default(), Self::default());
        for seed in fleet.seed..fleet.seed + Self::SEEDS {
            honest.add(&run(&fleet.honest_but(None), seed)?, kind);
            cheated.add(&run(&fleet.honest_but(Some(kind)), seed)?, kind);
        }
        Ok(Self {
            target: cheated.target / honest.target - 1.0,
            held: cheated.held / honest.held - 1.0,
        })
    }

    fn add(&mut self, record: &Record, kind: usize) {
        self.target += record.kinds[kind].last.target;
        self.held += record.kinds[kind].last.held;
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
