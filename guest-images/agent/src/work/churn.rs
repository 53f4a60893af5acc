//! Pages rewritten all the time, every byte of each checked before it is overwritten and once more at the end.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use levy_agent::Churn;

use super::pages::{Pages, count_of};
use super::pattern::{Random, check, fill, key};
use super::run::{Going, Outcome, Pacer, Run};

/// Pages between looks at the clock.
const BATCH: u64 = 32;

/// One thread's pages and what is in them.
struct Share {
    seed: u64,
    pages: Pages,
    versions: Vec<u32>,
    random: Random,
}

pub(super) fn run(parameters: &Churn, run: &mut Run) -> Outcome {
    let threads = parameters.threads;
    let count = count_of(parameters.mib)? / threads as usize;
    let mut shares: Vec<_> = (0..threads)
        .map(|thread| Share::new(parameters.seed, thread, count))
        .collect();
    let going = run.begin_work();
    let (ops, failure) = (AtomicU64::new(0), Mutex::new(None));
    let rate = parameters.rate.div_ceil(threads);
    thread::scope(|scope| {
        for share in &mut shares {
            let (ops, failure, going) = (&ops, &failure, going.clone());
            scope.spawn(move || {
                if let Err(error) = share.churn(rate, &going, ops) {
                    going.stop();
                    failure
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .get_or_insert(error);
                }
            });
        }
        run.watch(|| ops.load(Ordering::Relaxed));
    });
    if let Some(error) = failure
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
    {
        return Err(error);
    }
    let mut done = run.done(ops.into_inner(), "pages rewritten");
    shares.iter().try_for_each(Share::verify)?;
    done.detail = "every byte checked".to_owned();
    Ok(done)
}

impl Share {
    fn new(seed: u64, thread: u64, count: usize) -> Self {
        let seed = key(seed, thread, u64::MAX);
        Self {
            seed,
            pages: Pages::new(count),
            versions: vec![0; count],
            random: Random::new(seed),
        }
    }

    fn churn(&mut self, rate: u64, going: &Going, ops: &AtomicU64) -> Result<(), String> {
        let pacer = Pacer::new(rate);
        let mut mine = 0;
        while going.on() {
            let due = pacer.due(mine, BATCH);
            for _ in 0..due {
                let index = self.random.below(self.pages.count() as u64) as usize;
                self.check(index)?;
                self.versions[index] = self.versions[index].wrapping_add(1).max(1);
                let key = key(self.seed, index as u64, u64::from(self.versions[index]));
                fill(self.pages.page_mut(index), key);
            }
            mine += due;
            ops.fetch_add(due, Ordering::Relaxed);
            pacer.pace(mine + 1);
        }
        Ok(())
    }

    /// Version 0 is a page never written: zeros.
    fn check(&self, index: usize) -> Result<(), String> {
        let (page, version) = (self.pages.page(index), self.versions[index]);
        let checked = match version {
            0 => match page.iter().position(|byte| *byte != 0) {
                Some(at) => Err(format!("byte {at}: {:#04x} instead of 0", page[at])),
                None => Ok(()),
            },
            _ => check(page, key(self.seed, index as u64, u64::from(version))),
        };
        checked.map_err(|error| format!("page {index} version {version}: {error}"))
    }

    fn verify(&self) -> Result<(), String> {
        (0..self.pages.count()).try_for_each(|index| self.check(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_or_invented_byte_is_found() {
        let mut share = Share::new(1, 0, 8);
        share.verify().unwrap();
        share.pages.page_mut(3)[17] = 1;
        assert!(
            share
                .verify()
                .unwrap_err()
                .starts_with("page 3 version 0: byte 17")
        );
        share.pages.page_mut(3)[17] = 0;
        share.versions[5] = 2;
        fill(share.pages.page_mut(5), key(share.seed, 5, 2));
        share.verify().unwrap();
        share.versions[5] = 3;
        assert!(
            share
                .verify()
                .unwrap_err()
                .starts_with("page 5 version 3: byte 0"),
            "a stale page"
        );
    }
}
