//! Huge blocks: 2 MiB that are left to the kernel as one huge page, unwatched and untouched, until memory is short.
//!
//! A page of a huge block cannot be sampled, merged or swapped, and the block costs its guest nothing. Splitting watches
//! it from then on; rebuilding fills it with memory of its own and joins it again.

use super::Merger;
use crate::page::{Gfn, PAGE_SIZE};
use crate::region::guest::Guest;
use crate::region::kernel::{HUGE_PAGES, Mappings};
use crate::region::run::PageRun;
use crate::region::table::{Claim, Pinned, State};

/// Most mappings that splitting or joining a block adds: one at each end.
const BLOCK_MAPPINGS: i64 = 2;

impl Merger {
    /// Splits up to `blocks` huge blocks, from a random one on. Blocks for which no mapping is left stay whole.
    pub(crate) fn split_blocks(&mut self, blocks: u32, random: u64) -> u32 {
        let huge: Vec<PageRun> = huge_blocks(&self.guest, self.guest.table().all()).collect();
        if huge.is_empty() {
            return 0;
        }
        let from = (random % huge.len() as u64) as usize;
        let order = huge[from..].iter().chain(&huge[..from]);
        let mut split = 0;
        for &block in order {
            if split >= blocks {
                return split;
            }
            split += u32::from(self.split(block));
        }
        self.guest
            .counters()
            .splits_refused
            .add(u64::from(blocks - split));
        split
    }

    /// Splits the huge blocks that `run` touches. Blocks for which no mapping is left stay whole.
    pub(crate) fn split_run(&mut self, run: PageRun) -> u32 {
        let touched: Vec<PageRun> = huge_blocks(&self.guest, run).collect();
        let split = touched.iter().map(|&block| u32::from(self.split(block))).sum();
        let refused = touched.len() as u64 - u64::from(split);
        self.guest.counters().splits_refused.add(refused);
        split
    }

    fn split(&mut self, block: PageRun) -> bool {
        let guest = self.guest.clone();
        let cost = self.split_cost(block);
        if cost > 0 && !Mappings::of_process().have_room_for(cost) {
            return false;
        }
        let Some(claim) = guest.claim_run(block, State::Huge, Pinned::Leave) else {
            return false;
        };
        let whole = claim.run() == block;
        if !whole {
            guest.unclaim(claim);
            return false;
        }
        if let Err(refused) = guest.manage(claim) {
            let error = refused.leave_unwatched(&guest);
            log::warn!("{block:?} stays a huge block: {error}");
            guest.counters().mapping_failures.add(1);
            return false;
        }
        guest.counters().blocks_split.add(1);
        guest.add_mappings(cost);
        true
    }

    /// Mappings that splitting `block` adds: one at each end behind which there is another huge block, and one less where
    /// pages of their own are watched already.
    fn split_cost(&self, block: PageRun) -> i64 {
        let table = self.guest.table();
        let side = |page: Option<Gfn>| match page.filter(|page| page.get() < table.pages()) {
            Some(page) => match table.state(page) {
                State::Huge => 1,
                State::Hole | State::Shared | State::Broken => 0,
                _ => -1,
            },
            None => 0,
        };
        side(block.first.previous()) + side(Some(block.end()))
    }

    /// Joins a block of private pages to a huge page. The pages stop being watched first, so that the kernel will.
    pub(crate) fn rebuild_block(&mut self, first: Gfn) -> bool {
        let guest = self.guest.clone();
        let block = PageRun::new(first, HUGE_PAGES);
        let aligned = guest.layout().clip(block).eq([block])
            && guest
                .span(block)
                .start()
                .is_multiple_of(block.count as usize * PAGE_SIZE);
        if !aligned || !Mappings::of_process().have_room_for(BLOCK_MAPPINGS) {
            return false;
        }
        let mut claims = Vec::new();
        let mut at = first;
        while at < block.end() {
            let state = guest.table().state(at);
            let claim = match state.is_private() {
                true => guest.claim_run(block.rest(at), state, Pinned::Leave),
                false => None,
            };
            let Some(claim) = claim else {
                claims.into_iter().for_each(|claim| guest.unclaim(claim));
                return false;
            };
            at = claim.run().end();
            claims.push(claim);
        }
        self.join(block, claims)
    }

    fn join(&mut self, block: PageRun, claims: Vec<Claim>) -> bool {
        let guest = self.guest.clone();
        let span = guest.span(block);
        // Everything is present, so nothing can read as zero while the block is unwatched.
        let collapsed = guest
            .unwatch(block)
            .and_then(|()| span.flag_huge())
            .and_then(|()| span.collapse())
            .inspect_err(|error| log::info!("{block:?} stays in small pages: {error}"));
        // What cannot be watched again is as unwatched as a huge block, and nothing of it is missing.
        let huge = collapsed.is_ok()
            || guest
                .watch(block)
                .inspect_err(|error| log::warn!("{block:?} cannot be watched again: {error}"))
                .is_err();
        for page in block.pages() {
            self.withdraw(page);
            guest.table().set_pending(page, !huge);
        }
        for claim in claims {
            let to = if huge { State::Huge } else { claim.from() };
            guest.settle(claim, to);
        }
        if huge {
            guest.add_mappings(-self.split_cost(block));
        }
        guest.counters().blocks_rebuilt.add(u64::from(collapsed.is_ok()));
        collapsed.is_ok()
    }
}

/// The huge blocks that `run` touches, in order.
fn huge_blocks(guest: &Guest, run: PageRun) -> impl Iterator<Item = PageRun> {
    let table = guest.table();
    let end = run.end().get().min(table.pages()).div_ceil(HUGE_PAGES);
    (run.first.get() / HUGE_PAGES..end)
        .map(|block| PageRun::new(Gfn::new(block * HUGE_PAGES), HUGE_PAGES))
        .filter(|block| table.state(block.first) == State::Huge)
}
