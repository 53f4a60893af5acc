//! Where pages are that left memory: compressed, or in the swap file.

mod bring_back;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::page::{Gfn, Page};
use crate::region::guest::Guest;
use crate::region::reclaim::store::{Compressed, Store, StoreError, StoreHandle};
use crate::region::run::PageRun;
use crate::region::table::{Claim, Location, State};
use crate::swap::{READ_LIMIT, Swap, SwapError, SwapSlot};

/// Pages that come back together: the aligned group around the one that is touched.
pub(crate) const NEIGHBOURS: u32 = READ_LIMIT;

/// Bytes of empty blocks that the store keeps for the next pages, or an eighth of all it has.
const EMPTY_KEPT: usize = 1 << 20;

/// Blocks given back under one hold of the store's lock.
const TRIMMED_AT_ONCE: usize = 8;

/// A guest's compressed and swapped pages.
pub(crate) struct ColdStore {
    guest: Arc<Guest>,
    /// Locked for one page at a time, never while guest memory is touched.
    store: Mutex<Store>,
    /// Locked while pages are written to the disk.
    swap: Option<Mutex<Swap>>,
    /// Bytes of memory that the swap file took when this was last asked.
    swap_bytes: AtomicUsize,
    /// Bytes of disk space that no page was in then.
    swap_spare: AtomicU64,
}

impl Location for StoreHandle {
    fn belongs_to(state: State) -> bool {
        state == State::Compressed
    }

    fn from_bits(bits: u32) -> Self {
        Self::from_bits(bits)
    }

    fn bits(self) -> u32 {
        self.bits()
    }
}

impl Location for SwapSlot {
    fn belongs_to(state: State) -> bool {
        state == State::Swapped
    }

    fn from_bits(bits: u32) -> Self {
        Self::from_bits(bits)
    }

    fn bits(self) -> u32 {
        self.bits()
    }
}

impl ColdStore {
    /// For pages of `guest`.
    pub(crate) fn new(guest: Arc<Guest>, store: Store, swap: Option<Swap>) -> Self {
        Self {
            guest,
            store: store.into(),
            swap: swap.map(Mutex::new),
            swap_bytes: AtomicUsize::new(0),
            swap_spare: AtomicU64::new(0),
        }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn swap(&self) -> Option<MutexGuard<'_, Swap>> {
        Some(self.swap.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether there is a swap file.
    pub(super) fn has_swap(&self) -> bool {
        self.swap.is_some()
    }

    /// Bytes of memory that the compressed store has.
    pub(crate) fn store_bytes(&self) -> usize {
        self.store().reserved_bytes()
    }

    /// Bytes of memory that the swap file takes besides itself, and of disk space that no page is in. As last seen while
    /// the lock is held: the thread that holds it may be waiting for the disk.
    pub(crate) fn swap_bytes(&self) -> (usize, u64) {
        if let Some(Ok(swap)) = self.swap.as_ref().map(Mutex::try_lock) {
            self.swap_bytes.store(swap.metadata_bytes(), Ordering::Relaxed);
            self.swap_spare.store(swap.spare_bytes(), Ordering::Relaxed);
        }
        let spare = self.swap_spare.load(Ordering::Relaxed);
        (self.swap_bytes.load(Ordering::Relaxed), spare)
    }

    /// Keeps a compressed page; `None` when there is no room for it.
    pub(super) fn insert(&self, page: Compressed<'_>) -> Option<StoreHandle> {
        self.store().insert(page).ok()
    }

    /// Decompresses `page`, which is one of the claimed ones.
    ///
    /// # Errors
    /// When what is stored is not what was: the page is lost, and wrong bytes are never served.
    pub(crate) fn decompress(&self, claim: &Claim, page: Gfn, bytes: &mut Page) -> Result<(), StoreError> {
        let handle = self.guest.table().location(claim, page);
        self.store().load(handle, bytes)
    }

    /// Decompresses the claimed pages. Returns how many could be, from the first on, and why no more.
    pub(crate) fn decompress_run(&self, claim: &Claim, buffer: &mut [Page]) -> (u32, Option<StoreError>) {
        let run = claim.run();
        for (page, bytes) in run.pages().zip(buffer) {
            if let Err(error) = self.decompress(claim, page, bytes) {
                return (page.since(run.first), Some(error));
            }
        }
        (run.count, None)
    }

    /// Reads the pages of `run`, which are claimed and whose slots are consecutive.
    pub(crate) fn read(&self, claim: &Claim, run: PageRun, pages: &mut [Page]) -> Result<(), SwapError> {
        let slot = self.guest.table().location(claim, run.first);
        let located = self.swap().map(|swap| swap.locate_run(slot, run.count));
        located.ok_or(SwapError::Unknown(slot))??.read(pages)
    }

    /// Drops the stored copies of claimed pages that are compressed or swapped.
    pub(crate) fn forget(&self, claim: &Claim) {
        for page in claim.run().pages() {
            let table = self.guest.table();
            let forgotten = match claim.from() {
                State::Compressed => self.store().remove(table.location(claim, page)).is_ok(),
                State::Swapped => {
                    let slot = table.location(claim, page);
                    self.swap().is_some_and(|mut swap| swap.free(slot).is_ok())
                }
                _ => true,
            };
            debug_assert!(forgotten, "{page:?} of {claim:?} was not kept");
        }
    }

    /// Gives back what stored pages no longer need: memory of the store and disk space of the swap file. Not for the
    /// handler.
    pub(crate) fn trim(&self) {
        self.trim_store();
        self.shrink_swap();
    }

    /// Gives the memory of the store back once much of it is empty, a little at a time: the handler wants its lock.
    fn trim_store(&self) {
        loop {
            let mut store = self.store();
            let kept = (store.reserved_bytes() / 8).max(EMPTY_KEPT);
            if store.empty_bytes() <= kept || store.trim(TRIMMED_AT_ONCE) == 0 {
                return;
            }
        }
    }

    /// Gives disk space and page cache of the swap file back, without its lock: a thread that touches a page wants
    /// that.
    fn shrink_swap(&self) {
        // The thread that holds the lock may be waiting for the disk: another time.
        let hole = || self.swap.as_ref()?.try_lock().ok()?.shrink();
        while let Some(hole) = hole() {
            let punched = hole.punch();
            if let Some(mut swap) = self.swap() {
                swap.shrunk(hole, punched);
            }
        }
    }

    /// Changes a byte of a compressed page, as failing memory would.
    #[cfg(test)]
    pub(crate) fn damage(&self, page: Gfn, byte: usize) {
        let handle = self.guest.table().located(page).unwrap();
        self.store().damage(handle, byte);
    }
}
