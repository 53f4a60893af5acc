//! The growth gate: when a host's reserve for copy-on-write breaks is used up, each write that would need a new page
//! waits for the manager's credit instead of for the OOM killer.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;

/// Whether pool mappings may break, empty pages be filled and stored pages come back.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    closed: AtomicBool,
    credit: AtomicI64,
    grown: AtomicU64,
    waiting: AtomicU64,
    watcher: OnceLock<Thread>,
    /// Locked while pages come that no access waits for.
    passing: Mutex<()>,
}

/// What a gate has let through, and who waits at it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Growth {
    /// Pages that the guest may still grow by; 0 while the gate is open.
    pub credit: u64,
    /// Pages that grew through the closed gate since the region's start.
    pub grown: u64,
    /// Pages at which accesses wait for credit at this moment.
    pub waiting: u64,
}

/// What the gate says to one page of growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The gate is open.
    Free,
    /// It took one page of credit.
    Paid,
    /// There is no credit.
    Refused,
}

impl Gate {
    /// Whether growth waits for credit.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Opens or closes it; credit left over is forgotten. It is closed at once, and then waits for the thread that found
    /// it open in [`Gate::pass`]. Not for the handler.
    pub(crate) fn set_closed(&self, closed: bool) {
        self.credit.store(0, Ordering::SeqCst);
        self.closed.store(closed, Ordering::SeqCst);
        if closed {
            drop(self.passing());
        }
    }

    /// Lets pages come that no access waits for, as long as what is returned is held: closing waits for it. `None` while
    /// growth is gated. Not for the handler: the thread that holds it may wait for it.
    pub(crate) fn pass(&self) -> Option<MutexGuard<'_, ()>> {
        let passing = self.passing();
        (!self.is_closed()).then_some(passing)
    }

    fn passing(&self) -> MutexGuard<'_, ()> {
        self.passing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets that many more pages grow while closed.
    pub(crate) fn add_credit(&self, pages: u32) {
        self.credit.fetch_add(i64::from(pages), Ordering::SeqCst);
    }

    /// Lets that many pages grow while closed, from when [`Gate::growth`] said `grown`; what was granted before is
    /// void.
    pub(crate) fn set_credit(&self, pages: u32, grown: u64) {
        let since = self.grown.load(Ordering::SeqCst).saturating_sub(grown);
        let left = i64::from(pages) - i64::try_from(since).unwrap_or(i64::MAX);
        self.credit.store(left.max(0), Ordering::SeqCst);
    }

    /// Gives one page of credit back that was paid for and not used.
    pub(crate) fn refund(&self) {
        self.grown.fetch_sub(1, Ordering::SeqCst);
        if self.is_closed() {
            self.add_credit(1);
        }
    }

    /// Whether a request would be granted just now.
    pub(crate) fn would_admit(&self) -> bool {
        !self.is_closed() || self.credit.load(Ordering::SeqCst) > 0
    }

    /// Asks for one page of growth.
    pub(crate) fn admit_one(&self) -> Admission {
        if !self.is_closed() {
            return Admission::Free;
        }
        let one = |credit: i64| (credit > 0).then(|| credit - 1);
        let paid = self.credit.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one);
        match paid {
            Ok(_) => {
                self.grown.fetch_add(1, Ordering::SeqCst);
                Admission::Paid
            }
            Err(_) => Admission::Refused,
        }
    }

    /// Says how many wait; the first one wakes the thread that watches.
    pub(crate) fn set_waiting(&self, waiting: usize) {
        let before = self.waiting.swap(waiting as u64, Ordering::SeqCst);
        if before == 0
            && waiting > 0
            && let Some(watcher) = self.watcher.get()
        {
            watcher.unpark();
        }
    }

    /// Wakes `thread` from now on whenever an access begins to wait; the first thread that asks stays the one.
    pub(crate) fn watch(&self, thread: Thread) {
        let _ = self.watcher.set(thread);
    }

    /// What it has let through, and who waits.
    pub(crate) fn growth(&self) -> Growth {
        Growth {
            credit: u64::try_from(self.credit.load(Ordering::SeqCst)).unwrap_or(0),
            grown: self.grown.load(Ordering::SeqCst),
            waiting: self.waiting.load(Ordering::SeqCst),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Admission::{Free, Paid, Refused};

    #[test]
    fn a_closed_gate_admits_exactly_its_credit() {
        let gate = Gate::default();
        assert_eq!(gate.admit_one(), Free);
        gate.set_closed(true);
        assert_eq!(gate.admit_one(), Refused);
        gate.add_credit(2);
        assert_eq!([(); 3].map(|()| gate.admit_one()), [Paid, Paid, Refused]);
        gate.refund();
        assert_eq!((gate.growth().credit, gate.growth().grown), (1, 1));
        assert_eq!([(); 2].map(|()| gate.admit_one()), [Paid, Refused]);
        gate.set_closed(false);
        gate.refund();
        assert_eq!(gate.admit_one(), Free);
        gate.set_closed(true);
        assert_eq!(gate.admit_one(), Refused, "an open gate takes no credit back");
    }

    #[test]
    fn credit_that_is_set_counts_from_what_had_grown() {
        let gate = Gate::default();
        gate.set_closed(true);
        gate.set_credit(3, 0);
        assert_eq!([(); 2].map(|()| gate.admit_one()), [Paid; 2]);
        // Asked for when one page had grown; by now it is two.
        gate.set_credit(2, 1);
        assert_eq!((gate.growth().credit, gate.growth().grown), (1, 2));
        gate.set_credit(0, 0);
        assert_eq!(gate.admit_one(), Refused);
    }

    #[test]
    fn closing_waits_for_what_found_it_open_and_nothing_follows() {
        let gate = Gate::default();
        let passing = gate.pass().unwrap();
        std::thread::scope(|scope| {
            let (closed, is_closed) = std::sync::mpsc::channel();
            let gate = &gate;
            scope.spawn(move || {
                gate.set_closed(true);
                closed.send(()).unwrap();
            });
            while gate.admit_one() != Refused {
                std::thread::yield_now();
            }
            let early = is_closed.recv_timeout(std::time::Duration::from_millis(50));
            drop(passing);
            assert!(early.is_err(), "pages come through a gate that is closed");
            is_closed.recv().unwrap();
        });
        assert!(gate.pass().is_none());
        gate.set_closed(false);
        assert!(gate.pass().is_some());
    }

    #[test]
    fn whoever_watches_is_woken_by_the_first_that_waits() {
        let gate = Gate::default();
        gate.watch(std::thread::current());
        gate.set_waiting(1);
        let start = std::time::Instant::now();
        std::thread::park_timeout(std::time::Duration::from_secs(300));
        assert!(start.elapsed() < std::time::Duration::from_secs(250));
        assert_eq!(gate.growth().waiting, 1);
    }
}
