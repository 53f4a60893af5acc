//! What the manager has to be told of pages that left a pool or changed.

use crate::page::Gfn;
use crate::region::merge::PoolIndex;

/// References to return and hints to withdraw.
#[derive(Debug, Default)]
pub(crate) struct Owed {
    references: Vec<PoolIndex>,
    withdrawals: Vec<Gfn>,
}

impl Owed {
    /// Pool pages whose last mapping is gone.
    pub(crate) fn references(&self) -> &[PoolIndex] {
        &self.references
    }

    /// Pages that the manager should forget as hints.
    pub(crate) fn withdrawals(&self) -> &[Gfn] {
        &self.withdrawals
    }

    pub(super) fn add_references(&mut self, indices: impl IntoIterator<Item = PoolIndex>) {
        self.references.extend(indices);
    }

    /// The references added last.
    pub(super) fn last_references(&self, count: u32) -> &[PoolIndex] {
        &self.references[self.references.len() - count as usize..]
    }

    pub(super) fn forget_references(&mut self) {
        self.references.clear();
    }

    pub(super) fn add_withdrawal(&mut self, page: Gfn) {
        self.withdrawals.push(page);
    }

    pub(super) fn forget_withdrawals(&mut self) {
        self.withdrawals.clear();
    }
}
