//! How do private pages become mappings of equal pool pages, and how do they come back while their guest runs?
//!
//! # Nouns
//! - [`Pools`] are the pools that pages are mapped from; a [`PoolIndex`] is a page of one of them.
//! - A [`MergeRun`] is consecutive pages, each with the pool page that it probably equals and a reference to that.
//! - A page is **re-homed** when it gets memory of its own again, from the [`RehomeArena`]. [`RehomeCandidates`] are
//!   pages that broke, and since when they are quiet.
//! - [`Owed`] is what the manager has to be told: references to return, hints to withdraw.
//! - A **huge block** is 2 MiB that is left to the kernel as one page, unwatched, until memory is short.
//!
//! # Who owns whom
//! The [`Merger`] owns all of these and the [`Mover`]. One thread at a time uses it, under the region's engine lock.
//!
//! # Invariants
//! 1. A page is mapped from a pool only after all 4096 bytes were compared while it was in staging, and only with a
//!    reference that was granted before.
//! 2. A reference is owed to the manager as soon as its last mapping is gone, and not before.
//! 3. What the kernel refuses is undone or made good at once: a refused merge costs no byte.
//!
//! # Known holes
//! A merged page that the kernel would not watch can break without credit while growth is gated, until it is re-homed.

mod candidates;
mod gating;
mod huge;
mod merge_run;
mod merging;
mod owed;
mod pools;
mod rehome;
mod rehome_arena;
mod unmapping;
mod zeros;

use std::sync::Arc;

use rustix::io::Errno;

use crate::hash::Sketch;
use crate::page::Gfn;
use crate::port::Session;
use crate::region::guest::Guest;
use crate::region::mover::Mover;
use crate::region::table::Marks;

use candidates::RehomeCandidates;
use rehome_arena::RehomeArena;

pub(crate) use merge_run::MergeRun;
pub(crate) use owed::Owed;
pub use pools::PoolSize;
pub(crate) use pools::{PoolIndex, Pools};

/// Merges pages, and everything that leads a page out of a pool.
pub(crate) struct Merger {
    guest: Arc<Guest>,
    mover: Mover,
    pools: Pools,
    arena: RehomeArena,
    candidates: RehomeCandidates,
    owed: Owed,
}

impl Merger {
    /// Without a pool, so that it merges zeros only.
    pub(crate) fn new(guest: Arc<Guest>) -> std::io::Result<Self> {
        Ok(Self {
            mover: Mover::new(guest.clone())?,
            guest,
            pools: Pools::default(),
            arena: RehomeArena::new(),
            candidates: RehomeCandidates::default(),
            owed: Owed::default(),
        })
    }

    /// What takes pages away and gives them back.
    pub(crate) fn mover(&mut self) -> &mut Mover {
        &mut self.mover
    }

    /// Where pages can be mapped from.
    pub(crate) fn pools(&self) -> &Pools {
        &self.pools
    }

    /// Merges with the pool of `session` from now on. What an earlier manager was told does not count any more.
    pub(crate) fn join_pool(&mut self, session: &Session) -> Result<(), Errno> {
        self.pools.join(session)?;
        self.candidates.clear();
        self.owed.forget_withdrawals();
        Ok(())
    }

    /// Unmaps the pools of managers that are gone. No page may be mapped from them.
    pub(crate) fn forget_old_pools(&mut self) {
        self.pools.forget_old();
    }

    /// What the manager has to be told; nothing is owed any more.
    pub(crate) fn take_owed(&mut self) -> Owed {
        std::mem::take(&mut self.owed)
    }

    /// References that will not be used go back.
    pub(crate) fn return_references(&mut self, indices: impl IntoIterator<Item = PoolIndex>) {
        self.owed.add_references(indices);
    }

    /// The manager holds nothing but what is mapped: no reference is owed to it.
    pub(crate) fn forget_references(&mut self) {
        self.owed.forget_references();
    }

    /// A page of a pool has been found broken, with content `sketch`. Whether it has been quiet for long enough to be
    /// re-homed.
    pub(crate) fn note_broken(&mut self, page: Gfn, sketch: Sketch) -> bool {
        self.candidates.note(page, sketch)
    }

    /// `page` has no content that the manager or a re-home could want: what is remembered about it besides its state goes.
    pub(crate) fn forget_content(&mut self, page: Gfn) {
        self.withdraw(page);
        self.candidates.remove(page);
    }

    /// `page` is not private any more, or its content has changed: the manager should forget it as a hint.
    pub(crate) fn withdraw(&mut self, page: Gfn) {
        if self.guest.table().clear_marks(page, Marks::REPORTED) {
            self.owed.add_withdrawal(page);
        }
        self.guest.table().set_pending(page, false);
    }
}
