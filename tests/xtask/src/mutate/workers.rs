//! Doing the same with many things, as many at a time as there are cores.

use std::sync::{Mutex, PoisonError};
use std::thread::{self, available_parallelism};

use anyhow::Result;

/// Does `work` with each of `items`, which start in their order, and returns what it returned, in any order. The
/// first error ends it: what runs comes to its end, and nothing more is started.
pub(super) fn map<I: Send, O: Send>(items: Vec<I>, work: impl Fn(I) -> Result<O> + Sync) -> Result<Vec<O>> {
    let queue = Mutex::new(items.into_iter());
    let take = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let worker = || -> Result<Vec<O>> {
        let mut done = Vec::new();
        while let Some(item) = take() {
            match work(item) {
                Ok(result) => done.push(result),
                Err(error) => {
                    while take().is_some() {}
                    return Err(error);
                }
            }
        }
        Ok(done)
    };
    let cores = available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        let mut all = Vec::new();
        for worker in workers {
            let done = worker.join();
            all.extend(done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use anyhow::bail;

    use super::*;

    #[test]
    fn all_is_done_until_something_fails() {
        let mut doubled = map((0..100).collect(), |number: u32| Ok(number * 2)).unwrap();
        doubled.sort_unstable();
        assert!(doubled.into_iter().eq((0..200).step_by(2)));

        let started = AtomicU32::new(0);
        let failed = map(vec![(); 100_000], |()| -> Result<()> {
            started.fetch_add(1, Ordering::Relaxed);
            bail!("no")
        });
        assert_eq!(failed.unwrap_err().to_string(), "no");
        assert!(started.into_inner() < 100_000);
    }
}
