//! Squeezing: private pages leave memory for the compressed store or the swap file, and come back.
//!
//! Always after sharing was tried, and always by taking first: what is stored is what the page was when it left.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::page::{PAGE_SIZE, Page};
use crate::region::engine::{BATCH, Engine};
use crate::region::guest::shared::Guest;
use crate::region::reclaim::store::{Compressor, Store, StoreError, StoreHandle};
use crate::region::run::PageRun;
use crate::region::table::state::{Claim, PageTable, Pinned, State, mark};
use crate::swap::{READ_LIMIT, Swap, SwapError, SwapSlot};

/// Pages that come back together: the aligned group around the one that is touched.
pub(crate) const NEIGHBOURS: u32 = READ_LIMIT;

/// Bytes of empty blocks that the store keeps for the next pages, or an eighth of all it has.
const EMPTY_KEPT: usize = 1 << 20;

/// Blocks given back under one hold of the store's lock.
const TRIMMED_AT_ONCE: usize = 8;

/// Where squeezed pages are kept.
pub(crate) struct Keeping {
    /// Locked for one page at a time, never while guest memory is touched.
    pub(crate) store: Mutex<Store>,
    /// Locked while pages are written to the disk.
    pub(crate) swap: Option<Mutex<Swap>>,
    /// Bytes of memory that the swap file took when this was last asked.
    swap_bytes: AtomicUsize,
}

/// Why pages could not be swapped out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwapOutError {
    /// The region was made without a swap file.
    #[error("this guest has no swap file; give the region one when it is made")]
    NoSwapFile,
    /// The swap file did not take the pages; they are where they were.
    #[error(transparent)]
    Swap(#[from] SwapError),
}

impl Keeping {
    pub(crate) fn new(store: Store, swap: Option<Swap>) -> Self {
        Self {
            store: store.into(),
            swap: swap.map(Mutex::new),
            swap_bytes: AtomicUsize::new(0),
        }
    }

    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn swap(&self) -> Option<MutexGuard<'_, Swap>> {
        Some(self.swap.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Bytes of memory that the swap file takes besides itself. As last seen while the lock is held: the thread that
    /// holds it may be waiting for the disk.
    pub(crate) fn swap_metadata(&self) -> usize {
        if let Some(Ok(swap)) = self.swap.as_ref().map(Mutex::try_lock) {
            self.swap_bytes.store(swap.metadata_bytes(), Ordering::Relaxed);
        }
        self.swap_bytes.load(Ordering::Relaxed)
    }
}

impl Guest {
    /// Decompresses a page that its owner brings back.
    ///
    /// # Errors
    /// When what is stored is not what was: the page is lost, and wrong bytes are never served.
    pub(crate) fn expand(&self, page: u32, bytes: &mut Page) -> Result<(), StoreError> {
        let handle = StoreHandle::from_bits(self.table.detail(page));
        self.keeping.store().load(handle, bytes)
    }

    /// The same for claimed pages. Returns how many could be decompressed, from the first on, and why no more.
    pub(crate) fn expand_run(&self, run: PageRun, buffer: &mut [Page]) -> (u32, Option<StoreError>) {
        for (page, bytes) in run.numbers().zip(buffer) {
            if let Err(error) = self.expand(page, bytes) {
                return (page - run.first.get(), Some(error));
            }
        }
        (run.count, None)
    }

    /// Brings back claimed compressed pages, at most [`NEIGHBOURS`]; damaged ones become lost. Returns the number that
    /// came back. Not for the handler: waits for events to be read.
    pub(crate) fn bring_back_compressed(&self, claim: Claim, buffer: &mut [Page]) -> u32 {
        let (mut left, mut count) = (claim, 0);
        while left.run().count > 0 {
            let (intact, error) = self.expand_run(left.run(), buffer);
            let (back, rest) = left.split(intact);
            left = rest;
            count += intact;
            if intact > 0 {
                self.return_decompressed(back, &buffer[..intact as usize]);
            } else {
                drop(back);
            }
            if let Some(error) = error {
                let (damaged, rest) = left.split(1);
                left = rest;
                self.lose(damaged, &error);
            }
        }
        drop(left);
        count
    }

    /// Fills claimed pages with what was stored of them.
    fn return_decompressed(&self, claim: Claim, pages: &[Page]) {
        let run = claim.run();
        self.copy_all(run, pages);
        for page in run.numbers() {
            self.forget_stored(self.table.detail(page), State::Compressed);
        }
        self.counters.pages_decompressed.add(u64::from(run.count));
        self.settle(claim, State::Private);
    }

    /// Gives back what stored pages no longer need: memory of the store and disk space of the swap file. Not for the
    /// handler.
    pub(crate) fn trim_kept(&self) {
        self.trim_store();
        self.shrink_swap();
    }

    /// Gives the memory of the store back once much of it is empty, a little at a time: the handler wants its lock.
    fn trim_store(&self) {
        loop {
            let mut store = self.keeping.store();
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
        let hole = || self.keeping.swap.as_ref()?.try_lock().ok()?.shrink();
        while let Some(hole) = hole() {
            let punched = hole.punch();
            if let Some(mut swap) = self.keeping.swap() {
                swap.shrunk(hole, punched);
            }
        }
    }

    /// Drops the stored copy of a page that was compressed or swapped.
    pub(crate) fn forget_stored(&self, detail: u32, from: State) {
        let forgotten = match from {
            State::Compressed => self
                .keeping
                .store()
                .remove(StoreHandle::from_bits(detail))
                .is_ok(),
            State::Swapped => self
                .keeping
                .swap()
                .is_some_and(|mut swap| swap.free(SwapSlot::from_bits(detail)).is_ok()),
            _ => true,
        };
        debug_assert!(forgotten, "{detail:#x} was not kept as {from:?}");
    }

    /// Reads claimed swapped pages, at most [`NEIGHBOURS`], and brings them back, with one read for each stretch of
    /// consecutive slots; the one with pages that are `wanted` comes first. Of pages that are not what was written, those
    /// in `wanted` become lost and others stay in the file. So do pages that cannot be read: a thread that touches them waits
    /// until they can. At the region's end all of these are lost. Waits for the disk: never for the fault handler. Returns
    /// the number that came back.
    pub(crate) fn bring_back_swapped(&self, claim: Claim, wanted: PageRun, buffer: &mut [Page]) -> u32 {
        let mut count = 0;
        for stretch in stretches(&self.table, claim, wanted) {
            let length = stretch.run().count as usize;
            count += self.bring_back_stretch(stretch, wanted, &mut buffer[..length]);
        }
        count
    }

    /// The same for one stretch of consecutive slots.
    fn bring_back_stretch(&self, claim: Claim, wanted: PageRun, buffer: &mut [Page]) -> u32 {
        let run = claim.run();
        if self.read_swapped(run, buffer).is_ok() {
            self.return_swapped(claim, wanted, buffer);
            return run.count;
        }
        // One at least is bad; the others must not suffer.
        let (mut left, mut count) = (claim, 0);
        while left.run().count > 0 {
            let (one, rest) = left.split(1);
            left = rest;
            let is_wanted = wanted.numbers().contains(&one.run().first.get());
            match self.read_swapped(one.run(), &mut buffer[..1]) {
                Ok(()) => {
                    self.return_swapped(one, wanted, &buffer[..1]);
                    count += 1;
                }
                // Not what was written, and no other disk has it.
                Err(error @ (SwapError::Corrupt(_) | SwapError::Unknown(_))) if is_wanted => {
                    self.lose(one, &error);
                }
                // Back in the file, it would be forgotten with the region, and read zero.
                Err(error) if self.giving_up.load(Ordering::SeqCst) => self.lose(one, &error),
                Err(error) => {
                    if self.counters.swap_reads_failed.get().is_power_of_two() {
                        log::warn!("{:?} cannot be read from the swap file now: {error:?}", one.run());
                    }
                    self.counters.swap_reads_failed.add(1);
                    self.settle(one, State::Swapped);
                }
            }
        }
        drop(left);
        count
    }

    /// Reads the pages of `run`, whose slots are consecutive.
    pub(crate) fn read_swapped(&self, run: PageRun, pages: &mut [Page]) -> Result<(), SwapError> {
        let slot = SwapSlot::from_bits(self.table.detail(run.first.get()));
        let located = self.keeping.swap().map(|swap| swap.locate_run(slot, run.count));
        located.ok_or(SwapError::Unknown(slot))??.read(pages)
    }

    /// Fills claimed pages with what was read of them.
    fn return_swapped(&self, claim: Claim, wanted: PageRun, pages: &[Page]) {
        let run = claim.run();
        for page in run.numbers() {
            self.forget_stored(self.table.detail(page), State::Swapped);
        }
        let neighbours = run.numbers().filter(|page| !wanted.numbers().contains(page));
        self.counters.neighbours_swapped_in.add(neighbours.count() as u64);
        self.counters.pages_swapped_in.add(u64::from(run.count));
        self.copy_all(run, pages);
        self.settle(claim, State::Private);
    }

    fn lose(&self, claim: Claim, error: &dyn std::fmt::Display) {
        let page = claim.run().first.get();
        log::error!("page {page:#x} is lost: {error}");
        self.counters.pages_lost.add(1);
        self.forget_stored(self.table.detail(page), claim.from());
        self.poison(claim);
    }

    /// Makes a page that is lost fail at every access.
    fn poison(&self, claim: Claim) {
        let span = self.span(claim.run());
        self.insist("mark as broken", span, || {
            self.watch.poison(span).stopped.map_or(Ok(()), Err)
        });
        self.settle(claim, State::Lost);
    }
}

/// Stretches of claimed pages with consecutive slots, the one with wanted pages first.
fn stretches(table: &PageTable, claim: Claim, wanted: PageRun) -> Vec<Claim> {
    let (mut left, mut stretches) = (claim, Vec::new());
    while left.run().count > 0 {
        let slot = |page: u32| table.detail(page);
        let pages = left.run().numbers();
        let following = pages.clone().zip(pages.skip(1));
        let joined = following.take_while(|&(a, b)| slot(a).checked_add(1) == Some(slot(b)));
        let length = 1 + joined.count() as u32;
        let (stretch, rest) = left.split(length);
        left = rest;
        stretches.push(stretch);
    }
    drop(left);
    let is_wanted = |stretch: &Claim| {
        stretch
            .run()
            .numbers()
            .any(|page| wanted.numbers().contains(&page))
    };
    stretches.sort_by_key(|stretch| !is_wanted(stretch));
    stretches
}

impl Engine {
    /// Compresses what is private of `run`. Pages that do not compress, or for which there is no room, stay. Returns
    /// the number that left memory, pages of zeros among them.
    pub(crate) fn compress(&mut self, run: PageRun) -> u32 {
        let mut compressor = Compressor::new();
        let mut count = 0;
        for batch in run.pieces(BATCH) {
            let (zeros, taken) = self.take_for_storing(batch);
            count += zeros;
            for claim in taken {
                let mut left = claim;
                while left.run().count > 0 {
                    let (one, rest) = left.split(1);
                    left = rest;
                    count += u32::from(self.compress_taken(one, batch, &mut compressor));
                }
                drop(left);
            }
            self.clear_staging();
        }
        count
    }

    /// Takes what is private of `batch` and is worth storing: pages of zeros need nothing but the zero page. Returns the
    /// number of those that had memory of their own, and the others.
    fn take_for_storing(&mut self, batch: PageRun) -> (u32, Vec<Claim>) {
        let (mut zeros, mut others) = (0, Vec::new());
        let taken = self.take(batch);
        let staged = self.staged(batch.first, batch);
        let is_zero = |page: u32| staged.page_is_zero((page - batch.first.get()) as usize);
        for claim in taken {
            for (piece, zero) in claim.split_by(is_zero) {
                match (zero, piece.from()) {
                    (false, _) => others.push(piece),
                    (true, State::Zero) => self.give_back(batch.first, piece),
                    (true, _) => {
                        zeros += piece.run().count;
                        self.settle_zero(piece);
                    }
                }
            }
        }
        (zeros, others)
    }

    fn compress_taken(&mut self, claim: Claim, batch: PageRun, compressor: &mut Compressor) -> bool {
        let page = claim.run().first.get();
        let mut copy = [0; PAGE_SIZE];
        self.staged(batch.first, claim.run()).copy_out(0, &mut copy);
        let guest = self.guest.clone();
        let kept = compressor
            .compress(&copy)
            .and_then(|small| guest.keeping.store().insert(small).ok());
        let Some(handle) = kept else {
            self.give_back(batch.first, claim);
            return false;
        };
        guest.table.set_detail(page, handle.bits());
        self.forget_hint(page);
        guest.counters.pages_compressed.add(1);
        guest.settle(claim, State::Compressed);
        true
    }

    /// Writes what is private of `run` to the swap file. Returns the number of pages that left memory.
    pub(crate) fn swap_out(&mut self, run: PageRun) -> Result<u32, SwapOutError> {
        if self.guest.keeping.swap.is_none() {
            return Err(SwapOutError::NoSwapFile);
        }
        let (mut count, mut slots) = (0, Vec::new());
        for batch in run.pieces(BATCH) {
            let mut failed = None;
            let (zeros, taken) = self.take_for_storing(batch);
            count += zeros;
            for claim in taken {
                let pages = claim.run().count;
                match failed {
                    None => match self.swap_out_taken(claim, batch, &mut slots) {
                        Ok(()) => count += pages,
                        Err(error) => failed = Some(error),
                    },
                    Some(_) => self.give_back(batch.first, claim),
                }
            }
            self.clear_staging();
            if let Some(error) = failed {
                return Err(error.into());
            }
        }
        Ok(count)
    }

    fn swap_out_taken(
        &mut self,
        claim: Claim,
        batch: PageRun,
        slots: &mut Vec<SwapSlot>,
    ) -> Result<(), SwapError> {
        let (run, guest) = (claim.run(), self.guest.clone());
        self.copy_staged_aside(batch, run);
        slots.clear();
        let written = match guest.keeping.swap() {
            Some(mut swap) => swap.write(self.aside(run.count), slots),
            None => Ok(()),
        };
        if written.is_err() || slots.len() != run.count as usize {
            self.give_back(batch.first, claim);
            return written;
        }
        for (page, slot) in run.numbers().zip(slots.iter()) {
            guest.table.set_detail(page, slot.bits());
            self.forget_hint(page);
        }
        guest.counters.pages_swapped_out.add(u64::from(run.count));
        guest.settle(claim, State::Swapped);
        Ok(())
    }

    /// Gives up what of `run` is stored and cannot be brought back: every access fails from now on.
    pub(crate) fn give_up_stored(&mut self, run: PageRun) {
        let guest = self.guest.clone();
        for page in run.numbers() {
            let state = guest.table.state(page);
            if matches!(state, State::Compressed | State::Swapped)
                && let Some(claim) = guest.table.claim(page, state)
            {
                guest.lose(claim, &"it could not be brought back in time");
            }
        }
    }

    /// Brings back what of `run` is compressed or swapped. Returns the number of pages.
    pub(crate) fn bring_back(&mut self, run: PageRun) -> u32 {
        let guest = self.guest.clone();
        let buffer = self.aside_mut(NEIGHBOURS);
        let (mut at, mut count) = (run.first.get(), 0);
        while at < run.end() {
            let next = PageRun::of(at..run.end().min(at + NEIGHBOURS));
            let state = guest.table.state(at);
            let claim = match state {
                State::Compressed | State::Swapped => guest.claim_run(next, state, Pinned::Ignore),
                _ => None,
            };
            at = claim.as_ref().map_or(at + 1, |claim| claim.run().end());
            count += match claim {
                Some(claim) if state == State::Compressed => guest.bring_back_compressed(claim, buffer),
                Some(claim) => {
                    let wanted = claim.run();
                    guest.bring_back_swapped(claim, wanted, buffer)
                }
                None => 0,
            };
        }
        count
    }

    /// Up to `n` private pages that were not written for at least one pass, from `from` on, in runs.
    pub(crate) fn cold_pages(&self, n: u32, from: u32) -> Vec<PageRun> {
        let cold = |page: u32| !self.guest.table.is_pending(page);
        self.in_runs(self.movable(from).filter(|&page| cold(page)).take(n as usize))
    }

    /// The same, with as many others as are missing.
    pub(crate) fn victims(&self, n: u32, from: u32) -> Vec<PageRun> {
        let cold = |page: &u32| !self.guest.table.is_pending(*page);
        let first = self.movable(from).filter(cold);
        let others = self.movable(from).filter(|page| !cold(page));
        self.in_runs(first.chain(others).take(n as usize))
    }

    /// Private pages that may be taken, from `from` on.
    fn movable(&self, from: u32) -> impl Iterator<Item = u32> {
        let table = &self.guest.table;
        let all = table.pages();
        let stays = |page: u32| table.is_marked(page, mark::EXCLUDED) || table.is_marked(page, mark::STUCK);
        (from..all)
            .chain(0..from.min(all))
            .filter(move |&page| table.state(page) == State::Private && !stays(page))
    }

    fn in_runs(&self, pages: impl Iterator<Item = u32>) -> Vec<PageRun> {
        let mut pages: Vec<u32> = pages.collect();
        pages.sort_unstable();
        crate::region::run::runs_of(pages)
            .into_iter()
            .flat_map(|run| self.guest.layout.clip(run).collect::<Vec<_>>())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Gfn;

    #[test]
    fn the_wanted_page_is_read_before_its_neighbours() {
        let table = PageTable::new(16);
        let all = PageRun::new(Gfn::new(0), 16);
        let claim = table.found(all);
        // Three stretches of slots: 40 to 44, 7 to 14, and 30 to 32.
        let slots = (40..45).chain(7..15).chain(30..33);
        all.numbers()
            .zip(slots)
            .for_each(|(page, slot)| table.set_detail(page, slot));
        table.settle(claim, State::Private);
        for (wanted, order) in [(2, [0, 5, 13]), (6, [5, 0, 13]), (15, [13, 0, 5])] {
            let (claim, _) = table.claim_run(all, State::Private, Pinned::Ignore);
            let stretches = stretches(&table, claim.unwrap(), PageRun::of(wanted..wanted + 1));
            let firsts: Vec<u32> = stretches.iter().map(|it| it.run().first.get()).collect();
            assert_eq!(firsts, order, "page {wanted}");
            for stretch in stretches {
                table.settle(stretch, State::Private);
            }
        }
    }
}
