//! Makes inputs, runs them on some threads, and notices what goes wrong.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::mutate::Dice;
use crate::{Signature, Target};

/// An input that takes longer hangs.
const HANG: Duration = Duration::from_secs(10);
/// Of these many executions, one starts from a seed rather than from a kept input.
const FRESH_START: usize = 32;
/// How many kept inputs a worker holds.
const KEPT: usize = 4096;

thread_local! {
    /// What this thread is working on: a panic writes it down.
    static CURRENT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Runs a target.
#[derive(Debug, Clone)]
pub struct Runner {
    /// How many inputs.
    pub runs: u64,
    /// On how many threads.
    pub jobs: usize,
    /// The same seed, runs and jobs give the same inputs.
    pub seed: u64,
    /// Where the input that broke something goes.
    pub artifacts: PathBuf,
}

/// What a run came to.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// How many inputs were run.
    pub executions: u64,
    /// How many different things they brought about.
    pub signatures: usize,
    /// How long it took.
    pub elapsed: Duration,
}

/// What the watcher sees of a worker.
#[derive(Default)]
struct Pulse {
    executions: AtomicU64,
    done: AtomicBool,
}

impl Runner {
    /// Runs inputs until there were enough. An input that panics is written to a file and ends the process, as does one
    /// that hangs.
    pub fn run(&self, target: &Target, progress: impl Fn(u64, usize)) -> Result<Outcome> {
        write_down_panics(target.name, &self.artifacts);
        let start = Instant::now();
        let pulses: Vec<Pulse> = (0..self.jobs.max(1)).map(|_| Pulse::default()).collect();
        let seen = Mutex::new(HashSet::new());
        let share = self.runs.div_ceil(pulses.len() as u64);
        std::thread::scope(|scope| -> Result<()> {
            for (job, pulse) in pulses.iter().enumerate() {
                let runs = share.min(self.runs.saturating_sub(share * job as u64));
                let dice = Dice::new(self.seed ^ (job as u64).rotate_right(8));
                let seen = &seen;
                std::thread::Builder::new()
                    .name(format!("{}-{job}", target.name))
                    .spawn_scoped(scope, move || {
                        work(target, runs, dice, pulse, seen);
                        pulse.done.store(true, Ordering::Release);
                    })
                    .context("cannot start a worker")?;
            }
            watch(&pulses, |total| {
                progress(total, seen.lock().map_or(0, |seen| seen.len()));
            });
            Ok(())
        })?;
        let executions = pulses
            .iter()
            .map(|pulse| pulse.executions.load(Ordering::Relaxed))
            .sum();
        let signatures = seen.lock().map_or(0, |seen| seen.len());
        Ok(Outcome {
            executions,
            signatures,
            elapsed: start.elapsed(),
        })
    }

    /// Runs one input, to see again what it does.
    pub fn replay(&self, target: &Target, input: &[u8]) -> Signature {
        (target.worker)()(input)
    }
}

fn work(target: &Target, runs: u64, mut dice: Dice, pulse: &Pulse, seen: &Mutex<HashSet<Signature>>) {
    let mut worker = (target.worker)();
    let mut corpus = (target.seeds)();
    corpus.push(Vec::new());
    let seeds = corpus.len();
    // Its own, so that what a worker does depends on its dice alone.
    let mut known = HashSet::new();
    for run in 0..runs {
        let input = if run < seeds as u64 {
            corpus[run as usize].clone()
        } else {
            let from = if dice.below(FRESH_START) == 0 {
                dice.below(seeds)
            } else {
                dice.below(corpus.len())
            };
            let other = dice.below(corpus.len());
            dice.mutate(&corpus[from], &corpus[other], target.longest)
        };
        CURRENT.with_borrow_mut(|current| current.clone_from(&input));
        let signature = worker(&input);
        if known.insert(signature) {
            if let Ok(mut seen) = seen.lock() {
                seen.insert(signature);
            }
            if corpus.len() < KEPT {
                corpus.push(input);
            } else {
                let place = seeds + dice.below(KEPT - seeds);
                corpus[place] = input;
            }
        }
        pulse.executions.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reports progress every second, and ends the process when a worker takes too long over one input.
fn watch(pulses: &[Pulse], progress: impl Fn(u64)) {
    let mut last: Vec<(u64, Instant)> = pulses.iter().map(|_| (0, Instant::now())).collect();
    let mut told = Instant::now();
    let is_done = |pulse: &Pulse| pulse.done.load(Ordering::Acquire);
    while !pulses.iter().all(is_done) {
        std::thread::sleep(Duration::from_millis(5));
        if told.elapsed() < Duration::from_secs(1) {
            continue;
        }
        told = Instant::now();
        for (job, (pulse, (before, since))) in pulses.iter().zip(&mut last).enumerate() {
            let now = pulse.executions.load(Ordering::Relaxed);
            if now != *before {
                (*before, *since) = (now, told);
            }
            if !is_done(pulse) && since.elapsed() > HANG {
                eprintln!(
                    "worker {job} hangs on its input number {now}; the same seed and jobs bring it about again"
                );
                std::process::exit(1);
            }
        }
        progress(last.iter().map(|(executions, _)| executions).sum());
    }
}

/// A panic saves the input that brought it about; it ends the process in any case.
fn write_down_panics(name: &str, artifacts: &Path) {
    let (name, artifacts) = (name.to_owned(), artifacts.to_owned());
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        CURRENT.with_borrow(|input| {
            let file = artifacts.join(format!(
                "crash-{name}-{:016x}",
                Signature::of(input.iter().map(|b| u64::from(*b))).0
            ));
            match std::fs::create_dir_all(&artifacts).and_then(|()| std::fs::write(&file, input)) {
                Ok(()) => eprintln!("the input is in {}; replay it with --replay", file.display()),
                Err(error) => eprintln!("cannot write the input to {}: {error}", file.display()),
            }
        });
        std::process::exit(1);
    }));
}
