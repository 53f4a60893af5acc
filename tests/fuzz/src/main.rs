//! `cargo run --release -p fuzz -- TARGET --runs N`.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser;
use fuzz::{Runner, Target, targets};

#[derive(Parser)]
#[command(about = "Feeds hostile bytes to a target; ends with an error when one crashes or hangs")]
struct Args {
    /// Which target; `all` for each in turn, `list` for their names
    target: String,
    /// How many inputs per target
    #[arg(long, default_value_t = 1_000_000)]
    runs: u64,
    /// 100 million inputs per target
    #[arg(long, conflicts_with = "runs")]
    long: bool,
    /// On how many threads
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Other inputs for another seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run the input in FILE once, nothing else
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Where an input that breaks something is written
    #[arg(long, value_name = "DIR", default_value = "target/fuzz")]
    artifacts: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runs = if args.long { 100_000_000 } else { args.runs };
    let runner = Runner {
        runs,
        jobs: args.jobs,
        seed: args.seed,
        artifacts: args.artifacts,
    };
    if args.target == "list" {
        for target in targets::ALL {
            println!("{:<20} {}", target.name, target.about);
        }
        return Ok(());
    }
    let chosen = choose(&args.target)?;
    for target in chosen {
        match &args.replay {
            Some(file) => {
                let input = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
                println!("{}: {:?}", target.name, runner.replay(target, &input));
            }
            None => run(&runner, target)?,
        }
    }
    Ok(())
}

fn choose(name: &str) -> Result<Vec<&'static Target>> {
    let chosen: Vec<&Target> = targets::ALL
        .iter()
        .filter(|target| name == "all" || target.name == name)
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = targets::ALL.iter().map(|target| target.name).collect();
        bail!("no target is called {name:?}; there are: {}", names.join(", "));
    }
    Ok(chosen)
}

fn run(runner: &Runner, target: &Target) -> Result<()> {
    let terminal = std::io::stderr().is_terminal();
    let outcome = runner.run(target, |executions, signatures| {
        if terminal {
            eprint!(
                "\r{}: {executions} of {}, {signatures} signatures ",
                target.name, runner.runs
            );
        }
    })?;
    if terminal {
        eprintln!();
    }
    println!(
        "{}: {} executions, 0 crashes, 0 hangs, {} signatures, {:.1} s",
        target.name,
        outcome.executions,
        outcome.signatures,
        outcome.elapsed.as_secs_f64()
    );
    Ok(())
}
