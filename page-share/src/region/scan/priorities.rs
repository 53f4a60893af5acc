//! Runs to look at first, on their way to the scanner: from device threads, which must not wait for it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use crate::region::run::PageRun;

/// Most runs that wait. How many there are is the guest's doing, so there must be an end.
const LIMIT: usize = 4096;

/// Runs that wait to be looked at.
#[derive(Debug, Default)]
pub(crate) struct Priorities(Mutex<VecDeque<PageRun>>);

impl Priorities {
    /// Adds `run`, or lengthens the last one by it. At the limit the oldest is forgotten.
    pub(crate) fn add(&self, run: PageRun) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.back_mut() {
            Some(last) if last.end() == run.first => {
                *last = PageRun::between(last.first, run.end());
            }
            _ => {
                if waiting.len() == LIMIT {
                    waiting.pop_front();
                }
                waiting.push_back(run);
            }
        }
    }

    /// All of them, the oldest first.
    pub(crate) fn take(&self) -> VecDeque<PageRun> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Gfn;

    #[test]
    fn neighbours_join_and_the_number_is_bounded() {
        let priorities = Priorities::default();
        for page in 0..10 {
            priorities.add(PageRun::new(Gfn::new(page), 1));
        }
        assert_eq!(priorities.take(), [PageRun::new(Gfn::new(0), 10)]);
        for page in 0..2 * LIMIT as u32 {
            priorities.add(PageRun::new(Gfn::new(page * 2), 1));
        }
        let kept = priorities.take();
        assert_eq!(kept.len(), LIMIT);
        assert_eq!(
            kept.back(),
            Some(&PageRun::new(Gfn::new(4 * LIMIT as u32 - 2), 1))
        );
        assert!(priorities.take().is_empty());
    }
}
