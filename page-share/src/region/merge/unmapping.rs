//! Pool pages that their guest gives up.

use super::Merger;
use crate::page::PAGE_SIZE;
use crate::region::kernel::map_anonymous;
use crate::region::run::PageRun;
use crate::region::table::{Claim, State};

impl Merger {
    /// Fresh anonymous memory over claimed pool mappings, which are still claimed afterwards. `false` when the kernel has
    /// no mapping left for it; nothing has happened then.
    pub(crate) fn unmap(&mut self, claim: &Claim) -> bool {
        let guest = self.guest.clone();
        let (run, span) = (claim.run(), guest.span(claim.run()));
        if let Err(error) = map_anonymous(span) {
            guest.counters().mapping_failures.add(1);
            if span.is_mapped() {
                // Still a pool mapping: the kernel refused before it unmapped anything.
                return false;
            }
            guest.map_anew(span, error);
        } else {
            guest.insist("watch", span, || guest.watch(run));
        }
        // What was written before it was watched, and where all new mappings are locked, zeros.
        let _ = span.discard();
        self.left_pool(claim);
        true
    }

    /// The claimed pages read zero, as they must, but stay in their pool mapping as broken pages: no memory is won.
    pub(crate) fn zero_in_place(&mut self, claim: Claim) {
        let (run, span) = (claim.run(), self.guest.span(claim.run()));
        if let Err(error) = self.guest.unprotect_pool(run) {
            log::debug!("{run:?} cannot be unprotected: {error}");
        }
        // Settled first: should it be protected all the same, the handler lets the write through.
        self.guest.settle(claim, State::Broken);
        for index in 0..span.pages() {
            span.copy_in(index, &[0; PAGE_SIZE]);
        }
    }

    /// The claimed pages are not mapped from the pool any more: their references go back.
    pub(super) fn left_pool(&mut self, claim: &Claim) {
        let (run, table) = (claim.run(), self.guest.table());
        let indices = run.pages().map(|page| table.location(claim, page));
        self.owed.add_references(indices);
        let indices = self.owed.last_references(run.count);
        let change = self.mapping_change(run, indices);
        self.guest.add_mappings(-change);
    }

    /// Where pages cannot come home: has the kernel copy those that are still the pool's.
    pub(crate) fn break_in_place(&mut self, run: PageRun) {
        let guest = &self.guest;
        for page in run.pages().filter(|&page| guest.table().state(page).is_pool()) {
            guest.span(PageRun::one(page)).break_copies();
            guest.table().relabel(page, State::Shared, State::Broken);
        }
    }
}
