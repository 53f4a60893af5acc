//! Private pages leave memory for the compressed store or the swap file, and come back on a caller's order.

use crate::page::PAGE_SIZE;
use crate::region::merge::Merger;
use crate::region::mover::BATCH;
use crate::region::reclaim::store::Compressor;
use crate::region::reclaim::{NEIGHBOURS, Reclaimer};
use crate::region::run::PageRun;
use crate::region::table::{Claim, Pinned, State};
use crate::swap::{SwapError, SwapSlot};

/// Why pages could not be swapped out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwapOutError {
    /// The region was made without a swap file.
    #[error("this guest has no swap file; give the region one when it is made")]
    NoSwapFile,
    /// The swap file did not take all pages; those that it did not take are where they were.
    #[error(transparent)]
    Swap(#[from] SwapError),
}

impl Reclaimer {
    /// Compresses what is private of `run`. Pages that do not compress, or for which there is no room, stay. Returns
    /// the number that left memory, pages of zeros among them.
    pub(crate) fn compress(&mut self, merger: &mut Merger, run: PageRun) -> u32 {
        let mut compressor = Compressor::new();
        let mut count = 0;
        for batch in run.pieces(BATCH) {
            let (zeros, taken) = take_for_storing(merger, batch);
            count += zeros;
            for claim in taken {
                let mut left = claim;
                while left.run().count > 0 {
                    let (one, rest) = left.split(1);
                    left = rest;
                    count += u32::from(self.compress_taken(merger, one, &mut compressor));
                }
                drop(left);
            }
            merger.mover().clear();
        }
        count
    }

    fn compress_taken(&self, merger: &mut Merger, claim: Claim, compressor: &mut Compressor) -> bool {
        let page = claim.run().first;
        let mut copy = [0; PAGE_SIZE];
        merger.mover().staged(claim.run()).copy_out(0, &mut copy);
        let compressed = compressor.compress(&copy);
        let Some(handle) = compressed.and_then(|small| self.cold.insert(small)) else {
            merger.mover().give_back(claim);
            return false;
        };
        self.guest.table().set_location(&claim, page, handle);
        merger.withdraw(page);
        self.guest.counters().pages_compressed.add(1);
        self.guest.settle(claim, State::Compressed);
        true
    }

    /// Writes what is private of `run` to the swap file. Returns the number of pages that left memory. Where it fails for
    /// lack of room, as many left as there was room for.
    pub(crate) fn swap_out(&mut self, merger: &mut Merger, run: PageRun) -> Result<u32, SwapOutError> {
        if !self.cold.has_swap() {
            return Err(SwapOutError::NoSwapFile);
        }
        let (mut count, mut slots) = (0, Vec::new());
        for batch in run.pieces(BATCH) {
            let mut failed = None;
            let (zeros, taken) = take_for_storing(merger, batch);
            count += zeros;
            for claim in taken {
                let pages = claim.run().count;
                match failed {
                    None => match self.swap_out_taken(merger, claim, &mut slots) {
                        Ok(()) => count += pages,
                        Err(error) => failed = Some(error),
                    },
                    Some(_) => merger.mover().give_back(claim),
                }
            }
            merger.mover().clear();
            if let Some(error) = failed {
                return Err(error.into());
            }
        }
        Ok(count)
    }

    fn swap_out_taken(
        &self,
        merger: &mut Merger,
        claim: Claim,
        slots: &mut Vec<SwapSlot>,
    ) -> Result<(), SwapError> {
        let (run, guest) = (claim.run(), &self.guest);
        let pages = merger.mover().copy_staged_aside(run);
        slots.clear();
        let written = match self.cold.swap() {
            Some(mut swap) => swap.write_fitting(pages, slots),
            None => Ok(()),
        };
        let (swapped, rest) = claim.split(slots.len() as u32);
        for (page, &slot) in swapped.run().pages().zip(slots.iter()) {
            guest.table().set_location(&swapped, page, slot);
            merger.withdraw(page);
        }
        guest
            .counters()
            .pages_swapped_out
            .add(u64::from(swapped.run().count));
        guest.settle_rest(swapped, State::Swapped);
        if rest.run().count > 0 {
            merger.mover().give_back(rest);
        } else {
            drop(rest);
        }
        written
    }

    /// Gives up what of `run` is stored and cannot be brought back: every access fails from now on.
    pub(crate) fn give_up_stored(&mut self, run: PageRun) {
        let table = self.guest.table();
        for page in run.pages() {
            let state = table.state(page);
            if state.is_stored()
                && let Some(claim) = table.claim(page, state)
            {
                self.cold.lose(claim, &"it could not be brought back in time");
            }
        }
    }

    /// Brings back what of `run` is compressed or swapped. Returns the number of pages.
    pub(crate) fn bring_back(&mut self, merger: &mut Merger, run: PageRun) -> u32 {
        let buffer = merger.mover().aside_mut(NEIGHBOURS);
        let (mut at, mut count) = (run.first, 0);
        while at < run.end() {
            let next = PageRun::between(at, run.end().min(at.plus(NEIGHBOURS)));
            let state = self.guest.table().state(at);
            let claim = match state.is_stored() {
                true => self.guest.claim_run(next, state, Pinned::Ignore),
                false => None,
            };
            at = claim.as_ref().map_or(at.plus(1), |claim| claim.run().end());
            count += claim.map_or(0, |claim| {
                let wanted = claim.run();
                self.cold.bring_back(claim, wanted, buffer)
            });
        }
        count
    }
}

/// Takes what is private of `batch` and is worth storing: pages of zeros need nothing but the zero page. Returns the
/// number of those that had memory of their own, and the others.
fn take_for_storing(merger: &mut Merger, batch: PageRun) -> (u32, Vec<Claim>) {
    let (mut zeros, mut others) = (0, Vec::new());
    for claim in merger.mover().take(batch) {
        let mover = merger.mover();
        for (piece, zero) in claim.split_by(|page| mover.is_zero(page)) {
            match (zero, piece.from()) {
                (false, _) => others.push(piece),
                (true, State::Zero) => merger.mover().give_back(piece),
                (true, _) => {
                    zeros += piece.run().count;
                    merger.settle_zero(piece);
                }
            }
        }
    }
    (zeros, others)
}
