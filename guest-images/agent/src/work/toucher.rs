//! A working set that grows and shrinks by a schedule. The first word of a page holds its last stamp and is checked
//! at each touch.

use std::time::{Duration, Instant};

use levy_agent::{Phase, Toucher};

use super::pages::{Pages, count_of};
use super::pattern::{Random, key};
use super::run::{Going, Outcome, Pacer, Run};

/// Touches between looks at the clock.
const BATCH: u64 = 64;

pub(super) fn run(parameters: &Toucher, run: &mut Run) -> Outcome {
    let schedule = parameters.schedule()?;
    let largest = schedule.iter().map(|phase| phase.mib).max().unwrap_or(0);
    let mut set = WorkingSet::new(parameters, count_of(largest)?);
    let going = run.begin_work();
    let mut ops = 0;
    for phase in schedule {
        run.stats(
            "phase",
            [("mib", phase.mib.into()), ("seconds", phase.seconds.into())],
        );
        ops = set.phase(
            phase,
            parameters.rate,
            &mut Progress {
                run,
                going: &going,
                ops,
            },
        )?;
    }
    Ok(run.done(ops, "touches"))
}

struct Progress<'a> {
    run: &'a mut Run,
    going: &'a Going,
    ops: u64,
}

struct WorkingSet {
    pages: Pages,
    /// How often each page was written.
    stamps: Vec<u32>,
    random: Random,
    seed: u64,
    write_percent: u64,
}

impl WorkingSet {
    fn new(parameters: &Toucher, count: usize) -> Self {
        let (seed, write_percent) = (parameters.seed, parameters.write_percent);
        let stamps = vec![0; count];
        Self {
            pages: Pages::new(count),
            stamps,
            random: Random::new(seed),
            seed,
            write_percent,
        }
    }

    /// Touches the first `phase.mib` MiB for its time; returns all touches so far.
    fn phase(&mut self, phase: Phase, rate: u64, progress: &mut Progress<'_>) -> Result<u64, String> {
        let pages = phase.mib << 8;
        let until = Instant::now() + Duration::from_secs(phase.seconds);
        let pacer = Pacer::new(rate);
        let mut ops = 0;
        while Instant::now() < until && !progress.going.stopped() {
            let due = pacer.due(ops, BATCH);
            for _ in 0..due {
                self.touch(pages)?;
            }
            ops += due;
            progress.run.tick(progress.ops + ops);
            pacer.pace(ops + 1);
        }
        Ok(progress.ops + ops)
    }

    fn touch(&mut self, pages: u64) -> Result<(), String> {
        let index = self.random.below(pages) as usize;
        let writes = self.random.below(100) < self.write_percent;
        let stamp = self.stamps[index];
        let expected = if stamp == 0 {
            0
        } else {
            key(self.seed, index as u64, u64::from(stamp))
        };
        let word = &mut self.pages.page_mut(index)[..8];
        if *word != expected.to_le_bytes() {
            return Err(format!(
                "page {index}: {word:02x?} instead of {:02x?}",
                expected.to_le_bytes()
            ));
        }
        if writes {
            let stamp = stamp.wrapping_add(1).max(1);
            word.copy_from_slice(&key(self.seed, index as u64, u64::from(stamp)).to_le_bytes());
            self.stamps[index] = stamp;
        }
        Ok(())
    }
}
