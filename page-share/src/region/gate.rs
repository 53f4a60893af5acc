//! The growth gate: when a host's reserve for copy-on-write breaks is used up, each write that would need a new page
//! waits for the manager's credit instead of for the OOM killer.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// Whether pool mappings may break and empty pages be filled.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    closed: AtomicBool,
    credit: AtomicI64,
}

impl Gate {
    /// Whether growth waits for credit.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Opens or closes it; credit left over is forgotten.
    pub(crate) fn set_closed(&self, closed: bool) {
        self.credit.store(0, Ordering::SeqCst);
        self.closed.store(closed, Ordering::SeqCst);
    }

    /// Lets that many more pages grow while closed.
    pub(crate) fn add_credit(&self, pages: u32) {
        self.credit.fetch_add(i64::from(pages), Ordering::SeqCst);
    }

    /// Gives one page of credit back that was asked for and not used.
    pub(crate) fn refund(&self) {
        if self.is_closed() {
            self.add_credit(1);
        }
    }

    /// Whether a request would be granted just now.
    pub(crate) fn would_admit(&self) -> bool {
        !self.is_closed() || self.credit.load(Ordering::SeqCst) > 0
    }

    /// Asks for one page of growth.
    pub(crate) fn admits_one(&self) -> bool {
        !self.is_closed()
            || self
                .credit
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |credit| {
                    (credit > 0).then(|| credit - 1)
                })
                .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_admits_exactly_its_credit() {
        let gate = Gate::default();
        assert!(gate.admits_one());
        gate.set_closed(true);
        assert!(!gate.admits_one());
        gate.add_credit(2);
        assert_eq!(
            [gate.admits_one(), gate.admits_one(), gate.admits_one()],
            [true, true, false]
        );
        gate.refund();
        assert_eq!([gate.admits_one(), gate.admits_one()], [true, false]);
        gate.set_closed(false);
        gate.refund();
        assert!(gate.admits_one());
        gate.set_closed(true);
        assert!(!gate.admits_one(), "an open gate takes no credit back");
    }
}
