//! How a page changes hands: claimed, settled, and the threads that waited for it woken. `tests/state_machine`
//! compiles this folder a second time, on a model checker's atomics.

use crate::region::run::PageRun;
use crate::region::table::{Claim, PageTable, Pinned, State};

/// Wakes the threads whose accesses wait for pages.
pub(crate) trait Waiters {
    /// Lets accesses to missing pages try again.
    fn wake_missing(&self, run: PageRun);

    /// Lets writes to write-protected pool pages try again.
    fn wake_protected(&self, run: PageRun);

    /// Whether a page that has just been merged may be write-protected already.
    fn protects_merges(&self) -> bool;
}

/// Claims the longest start of `run` whose pages are all in state `from` and, unless `pinned` is to be ignored, have no I/O
/// in flight. `None` when already the first is not.
pub(crate) fn claim_run(
    table: &PageTable,
    waiters: &impl Waiters,
    run: PageRun,
    from: State,
    pinned: Pinned,
) -> Option<Claim> {
    let (claim, let_go) = table.claim_run(run, from, pinned);
    if let Some(let_go) = let_go {
        settle(table, waiters, let_go, from);
    }
    claim
}

/// Settles `claim` and lets every access that was left to its owner try again.
///
/// An access to a page in transit is left to the owner, whatever it waits for: a missing page, or a write-protected one,
/// which only a page of a pool can be.
pub(crate) fn settle(table: &PageTable, waiters: &impl Waiters, claim: Claim, to: State) {
    let (run, from) = (claim.run(), claim.from());
    table.settle(claim, to);
    waiters.wake_missing(run);
    if from.is_pool() || (to.is_pool() && waiters.protects_merges()) {
        waiters.wake_protected(run);
    }
}
