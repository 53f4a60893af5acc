//! Huge blocks: 2 MiB that are left to the kernel as one huge page, unwatched and untouched, until memory is short.
//!
//! A page of a huge block cannot be sampled, merged or swapped, and the block costs its guest nothing. Splitting watches
//! it from then on; rebuilding fills it with memory of its own and joins it again.

use rustix::io::Errno;

use crate::page::{Gfn, PAGE_SIZE};
use crate::region::engine::Engine;
use crate::region::guest::shared::Guest;
use crate::region::kernel::mappings::Mappings;
use crate::region::kernel::memory::HUGE_PAGES;
use crate::region::kernel::userfault::{Found, Look, Pagemap, Watch};
use crate::region::run::PageRun;
use crate::region::table::state::{Claim, Pinned, State};

/// Most mappings that splitting or joining a block adds: one at each end.
const BLOCK_MAPPINGS: i64 = 2;

impl Engine {
    /// Splits up to `blocks` huge blocks, from a random one on. Blocks for which no mapping is left stay whole.
    pub(crate) fn split_blocks(&mut self, blocks: u32, random: u64) -> u32 {
        let huge: Vec<PageRun> = huge_blocks(&self.guest, 0..self.guest.table.pages()).collect();
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
        self.guest.counters.splits_refused.add(u64::from(blocks - split));
        split
    }

    /// Splits the huge blocks that `run` touches. Blocks for which no mapping is left stay whole.
    pub(crate) fn split_run(&mut self, run: PageRun) -> u32 {
        let touched: Vec<PageRun> = huge_blocks(&self.guest, run.numbers()).collect();
        let split = touched.iter().map(|&block| u32::from(self.split(block))).sum();
        let refused = touched.len() as u64 - u64::from(split);
        self.guest.counters.splits_refused.add(refused);
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
            guest.settle(claim, State::Huge);
            return false;
        }
        if let Err(refused) = manage(&guest, claim, &mut self.pagemap) {
            log::warn!("{block:?} stays a huge block: {}", refused.error);
            guest.counters.mapping_failures.add(1);
            refused.leave_unwatched(&guest);
            return false;
        }
        guest.counters.blocks_split.add(1);
        guest.add_mappings(cost);
        true
    }

    /// Mappings that splitting `block` adds: one at each end behind which there is another huge block, and one less where
    /// pages of their own are watched already.
    fn split_cost(&self, block: PageRun) -> i64 {
        let table = &self.guest.table;
        let side = |page: Option<u32>| match page.filter(|&page| page < table.pages()) {
            Some(page) => match table.state(page) {
                State::Huge => 1,
                State::Hole | State::Shared | State::Broken => 0,
                _ => -1,
            },
            None => 0,
        };
        side(block.first.get().checked_sub(1)) + side(Some(block.end()))
    }

    /// Joins a block of private pages to a huge page. The pages stop being watched first, so that the kernel will.
    pub(crate) fn rebuild_block(&mut self, first: Gfn) -> bool {
        let guest = self.guest.clone();
        let block = PageRun::new(first, HUGE_PAGES);
        let aligned = guest.layout.clip(block).eq([block])
            && guest
                .span(block)
                .start()
                .is_multiple_of(block.count as usize * PAGE_SIZE);
        if !aligned || !Mappings::of_process().have_room_for(BLOCK_MAPPINGS) {
            return false;
        }
        let mut claims = Vec::new();
        let mut at = first.get();
        while at < block.end() {
            let rest = PageRun::of(at..block.end());
            let state = guest.table.state(at);
            let claim = match state {
                State::Private | State::Zero => guest.claim_run(rest, state, Pinned::Leave),
                _ => None,
            };
            let Some(claim) = claim else {
                for claim in claims {
                    let Claimed(claim) = claim;
                    let from = claim.from();
                    guest.settle(claim, from);
                }
                return false;
            };
            at = claim.run().end();
            claims.push(Claimed(claim));
        }
        self.join(block, claims)
    }

    fn join(&mut self, block: PageRun, claims: Vec<Claimed>) -> bool {
        let guest = self.guest.clone();
        let span = guest.span(block);
        // Everything is present, so nothing can read as zero while the block is unwatched.
        let collapsed = guest
            .watch
            .unregister(span)
            .and_then(|()| span.flag_huge())
            .and_then(|()| span.collapse())
            .inspect_err(|error| log::info!("{block:?} stays in small pages: {error}"));
        // What cannot be watched again is as unwatched as a huge block, and nothing of it is missing.
        let huge = collapsed.is_ok()
            || span
                .flag_private()
                .and_then(|()| guest.watch.register(span, Watch::MissingAndWrites))
                .inspect_err(|error| log::warn!("{block:?} cannot be watched again: {error}"))
                .is_err();
        for page in block.numbers() {
            self.forget_hint(page);
            guest.table.set_pending(page, !huge);
        }
        for Claimed(claim) in claims {
            let to = if huge { State::Huge } else { claim.from() };
            guest.settle(claim, to);
        }
        if huge {
            guest.add_mappings(-self.split_cost(block));
        }
        guest.counters.blocks_rebuilt.add(u64::from(collapsed.is_ok()));
        collapsed.is_ok()
    }

    /// Claims what of `run` is mapped from a pool.
    pub(crate) fn claim_shared(&self, run: PageRun) -> Vec<Claim> {
        let table = &self.guest.table;
        let mut claims = Vec::new();
        let mut at = run.first.get();
        while at < run.end() {
            while table.is_held_for_a_moment(at) {
                // The handler has it.
                std::thread::yield_now();
            }
            let state = table.state(at);
            let claim = match state {
                State::Shared | State::Broken => {
                    self.guest
                        .claim_run(PageRun::of(at..run.end()), state, Pinned::Ignore)
                }
                _ => None,
            };
            at = claim.as_ref().map_or(at + 1, |claim| claim.run().end());
            claims.extend(claim);
        }
        claims
    }

    /// Makes writes to a claimed stretch of pool mappings wait for credit.
    pub(crate) fn gate_claim(&self, claim: Claim) {
        let (span, from) = (self.guest.span(claim.run()), claim.from());
        // Broken pages are memory of their own already.
        if from == State::Shared
            && let Err(error) = self.guest.pool_watch.protect(span)
        {
            log::warn!("{span:?} cannot be protected and may grow ungated: {error}");
        }
        self.guest.settle(claim, from);
    }

    /// Lets them through again.
    pub(crate) fn ungate_claim(&self, claim: Claim) {
        let (span, from) = (self.guest.span(claim.run()), claim.from());
        if let Err(error) = self.guest.pool_watch.unprotect(span) {
            log::warn!("{span:?} cannot be unprotected at once: {error}; its faults will do it");
        }
        self.guest.settle(claim, from);
    }
}

/// A claim on its way through [`Engine::rebuild_block`].
struct Claimed(Claim);

/// The huge blocks that `pages` touch, in order.
fn huge_blocks(guest: &Guest, pages: std::ops::Range<u32>) -> impl Iterator<Item = PageRun> {
    let table = &guest.table;
    let end = pages.end.min(table.pages()).div_ceil(HUGE_PAGES);
    (pages.start / HUGE_PAGES..end)
        .map(|block| block * HUGE_PAGES)
        .filter(|&first| table.state(first) == State::Huge)
        .map(|first| PageRun::new(Gfn::new(first), HUGE_PAGES))
}

/// Pages that the kernel does not watch, and why.
#[must_use = "the claim blocks its guest until it is settled"]
pub(crate) struct Unwatched {
    claim: Claim,
    pub(crate) error: Errno,
}

impl Unwatched {
    /// Leaves the pages to the kernel, as they were. Where even that fails some stay watched: the handler fills what is
    /// missing of them.
    pub(crate) fn leave_unwatched(self, guest: &Guest) {
        let span = guest.span(self.claim.run());
        let left = guest.watch.unregister(span).and_then(|()| span.flag_huge());
        if let Err(error) = left {
            log::warn!("{span:?} cannot be left to the kernel: {error}");
        }
        guest.settle(self.claim, State::Huge);
    }
}

/// Starts watching claimed pages that were unwatched so far, and settles each as what it is.
pub(crate) fn manage(guest: &Guest, claim: Claim, pagemap: &mut Pagemap) -> Result<(), Unwatched> {
    let span = guest.span(claim.run());
    let watched = span
        .flag_private()
        .and_then(|()| guest.watch.register(span, Watch::MissingAndWrites));
    if let Err(error) = watched {
        return Err(Unwatched { claim, error });
    }
    let mut found = Vec::new();
    if let Err(error) = pagemap.scan(span, Look::Populated, &mut found) {
        // A private page that is missing after all is filled when it is touched, and found out when it is taken.
        log::warn!("{span:?} cannot be looked at: {error}; taken for private");
        guest.settle(claim, State::Private);
        return Ok(());
    }
    settle_as_found(guest, claim, &found);
    Ok(())
}

/// Populated pages are private, the others empty.
fn settle_as_found(guest: &Guest, claim: Claim, populated: &[Found]) {
    let span = guest.span(claim.run());
    let mut left = claim;
    for found in populated {
        let at = ((found.start - span.start()) / PAGE_SIZE) as u32;
        let pages = ((found.end - found.start) / PAGE_SIZE) as u32;
        let passed = span.pages() as u32 - left.run().count;
        let (empty, rest) = left.split(at - passed);
        let (populated, rest) = rest.split(pages);
        left = rest;
        settle_some(guest, empty, State::Empty);
        settle_some(guest, populated, State::Private);
    }
    settle_some(guest, left, State::Empty);
}

fn settle_some(guest: &Guest, claim: Claim, to: State) {
    if claim.run().count > 0 {
        guest.settle(claim, to);
    }
}
