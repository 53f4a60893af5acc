//! One run: fleets side by side, a line now and then, a report.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::course;
use crate::fleet::Setting;
use crate::quota::Quota;
use crate::tally::{Breach, Tally};

/// Time between two lines.
const LINE: Duration = Duration::from_secs(10);

/// One long stall for this many.
const LONG_PART: u64 = 18;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Processes to kill, and as many to stall, over all fleets
    #[arg(long, default_value_t = 200)]
    kills: u64,
    /// Decides what is done, and in which order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Managers, each with three to five guests
    #[arg(long, default_value_t = 8)]
    fleets: u64,
    /// Longest time until no more is done
    #[arg(long, default_value_t = 38)]
    minutes: u64,
    /// A minute's worth: 4 fleets, 32 kills, 32 stalls, one of them long
    #[arg(long)]
    quick: bool,
    /// Tell everything that is done
    #[arg(long)]
    verbose: bool,
    /// Write the report to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where what went wrong is written to, with what was done before [default: chaos-SEED.txt among temporary files]
    #[arg(long, value_name = "FILE")]
    failures: Option<PathBuf>,
    /// The `levy` program whose `host` manages [default: the manager of which this program is made]
    #[arg(long, value_name = "PROGRAM")]
    levy: Option<PathBuf>,
}

impl Args {
    /// Runs to the end; fails where anything was that must not be.
    pub(crate) fn run(mut self) -> anyhow::Result<ExitCode> {
        if self.quick {
            (self.fleets, self.kills) = (self.fleets.min(4), self.kills.min(32));
        }
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        let tally = Arc::new(Tally::default());
        // What never happens shows as a zero.
        for name in ["kills", "stalls", "long_stalls", "checks", "budget.samples"] {
            tally.add(name, 0);
        }
        let setting = Setting {
            levy: self.levy.clone(),
            tally: Arc::clone(&tally),
            interrupted,
            seed: self.seed,
            is_loud: self.verbose,
        };
        let began = Instant::now();
        self.run_fleets(&setting)?;
        tally.add("seed", self.seed);
        tally.add("fleets", self.fleets);
        tally.add("seconds", began.elapsed().as_secs());
        self.conclude(&tally, setting.interrupted.load(Ordering::SeqCst))
    }

    fn run_fleets(&self, setting: &Setting) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(self.minutes * 60);
        let (seed, fleets, kills) = (self.seed, self.fleets, self.kills);
        eprintln!("chaos: seed {seed}, {fleets} fleets, {kills} kills and as many stalls");
        let mut threads = Vec::new();
        for number in 0..self.fleets {
            let (setting, quota) = (setting.clone(), self.quota(number));
            let body = move || {
                // An error here is the harness's own.
                if let Err(error) = course::run(number as usize, &setting, quota, until) {
                    let tell = || format!("fleet {number} of seed {}: {error:#}", setting.seed);
                    setting.tally.breach(Breach::Stuck, 1, tell);
                }
            };
            let thread = std::thread::Builder::new().name(format!("fleet-{number}"));
            threads.push(thread.spawn(body).context("cannot start a thread")?);
        }
        let mut told = Instant::now();
        while threads.iter().any(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(100));
            if told.elapsed() >= LINE {
                told = Instant::now();
                eprintln!("chaos: {}", setting.tally.line());
            }
        }
        Ok(())
    }

    /// The part of fleet `number`.
    fn quota(&self, number: u64) -> Quota {
        let part = |of: u64| of / self.fleets + u64::from(number < of % self.fleets);
        Quota {
            kills: part(self.kills),
            stalls: part(self.kills),
            long: part(self.kills.div_ceil(LONG_PART)),
        }
    }

    fn conclude(&self, tally: &Tally, interrupted: bool) -> anyhow::Result<ExitCode> {
        let report = tally.report();
        report.write(self.json.as_deref())?;
        println!("{:#}", report.to_json()["results"]);
        println!("chaos: {}", tally.line());
        let failures = tally.failures();
        if !failures.is_empty() {
            let name = format!("chaos-{}.txt", self.seed);
            let file = self.failures.clone();
            let file = file.unwrap_or_else(|| std::env::temp_dir().join(name));
            std::fs::write(&file, failures.join("\n\n") + "\n")
                .with_context(|| format!("cannot write {}", file.display()))?;
            println!(
                "chaos: what went wrong, and what was done before: {}",
                file.display()
            );
        }
        Ok(match (interrupted, tally.breaches()) {
            (true, _) => ExitCode::from(130),
            (false, 0) => ExitCode::SUCCESS,
            (false, _) => ExitCode::FAILURE,
        })
    }
}
