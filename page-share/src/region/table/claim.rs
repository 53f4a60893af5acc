//! Pages in one thread's hands.

use crate::page::Gfn;
use crate::region::run::PageRun;
use crate::region::table::State;

/// Pages held by one thread: a run that was in one state and is in transit now. Must be settled.
#[derive(Debug)]
#[must_use = "a claimed page blocks its guest until it is settled"]
pub(crate) struct Claim {
    run: PageRun,
    from: State,
}

impl Claim {
    /// `run` was `from` and is in transit now: for the table alone.
    pub(super) fn new(run: PageRun, from: State) -> Self {
        Self { run, from }
    }

    /// Its pages are settled: for the table alone.
    pub(super) fn end(self) {
        std::mem::forget(self);
    }

    /// The pages.
    pub(crate) fn run(&self) -> PageRun {
        self.run
    }

    /// What they were.
    pub(crate) fn from(&self) -> State {
        self.from
    }

    /// The first `count` pages and the rest.
    pub(crate) fn split(self, count: u32) -> (Self, Self) {
        assert!(count <= self.run.count);
        let (run, from) = (self.run, self.from);
        self.end();
        let rest = Self::new(run.rest(run.first.plus(count)), from);
        (Self::new(PageRun::new(run.first, count), from), rest)
    }

    /// Stretches of pages of which `test` says the same.
    pub(crate) fn split_by(self, test: impl Fn(Gfn) -> bool) -> Vec<(Self, bool)> {
        let (mut left, mut parts) = (self, Vec::new());
        while left.run.count > 0 {
            let run = left.run;
            let answer = test(run.first);
            let alike = run.pages().skip(1).take_while(|&page| test(page) == answer);
            let length = 1 + alike.count() as u32;
            let (part, rest) = left.split(length);
            left = rest;
            parts.push((part, answer));
        }
        drop(left);
        parts
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // An owner that forgets a page would leave a guest waiting for ever.
        assert!(
            self.run.count == 0 || std::thread::panicking(),
            "{self:?} was never settled"
        );
    }
}
