//! Huge blocks: 2 MiB that are left to the kernel as one huge page, unwatched and untouched, until memory is short.
//!
//! A page of a huge block cannot be sampled, merged or swapped, and the block costs its guest nothing. Splitting watches
//! it from then on; rebuilding fills it with memory of its own and joins it again.

use crate::page::Gfn;
use crate::region::engine::Engine;
use crate::region::error::fatal;
use crate::region::guest::Guest;
use crate::region::memory::HUGE_PAGES;
use crate::region::run::PageRun;
use crate::region::state::{Claim, Pinned, State};
use crate::region::userfault::{Look, Pagemap, Watch};

impl Engine {
    /// Splits up to `blocks` huge blocks, from a random one on.
    pub(crate) fn split_blocks(&mut self, blocks: u32, random: u64) -> u32 {
        let huge: Vec<PageRun> = huge_blocks(&self.guest, 0..self.guest.table.pages()).collect();
        if huge.is_empty() {
            return 0;
        }
        let from = (random % huge.len() as u64) as usize;
        let order = huge[from..].iter().chain(&huge[..from]);
        order
            .take(blocks as usize)
            .map(|&block| u32::from(self.split(block)))
            .sum()
    }

    /// Splits the huge blocks that `run` touches.
    pub(crate) fn split_run(&mut self, run: PageRun) -> u32 {
        let touched: Vec<PageRun> = huge_blocks(&self.guest, run.numbers()).collect();
        touched.iter().map(|&block| u32::from(self.split(block))).sum()
    }

    fn split(&mut self, block: PageRun) -> bool {
        let guest = self.guest.clone();
        let Some(claim) = guest.claim_run(block, State::Huge, Pinned::Leave) else {
            return false;
        };
        let whole = claim.run() == block;
        if !whole {
            guest.table.settle(claim, State::Huge);
            return false;
        }
        manage(&guest, claim, &mut self.pagemap);
        guest.counters.blocks_split.add(1);
        guest.add_mappings(2);
        true
    }

    /// Joins a block of private pages to a huge page. The pages stop being watched first, so that the kernel will.
    pub(crate) fn rebuild_block(&mut self, first: Gfn) -> bool {
        let guest = self.guest.clone();
        let block = PageRun::new(first, HUGE_PAGES);
        let aligned = guest.layout.clip(block).eq([block])
            && guest
                .span(block)
                .start()
                .is_multiple_of(block.count as usize * crate::page::PAGE_SIZE);
        if !aligned {
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
        // Everything is present, so nothing can read as zero while nobody watches.
        let collapsed = guest
            .watch
            .unregister(span)
            .and_then(|()| span.flag_huge())
            .and_then(|()| span.collapse())
            .inspect_err(|error| log::info!("{block:?} stays in small pages: {error}"));
        let to = if collapsed.is_ok() {
            Some(State::Huge)
        } else {
            None
        };
        if to.is_none() {
            let watched = span
                .flag_private()
                .and_then(|()| guest.watch.register(span, Watch::MissingAndWrites));
            if let Err(error) = watched {
                fatal(format_args!("{block:?} cannot be watched again: {error}"));
            }
        }
        for page in block.numbers() {
            self.forget_hint(page);
            guest.table.set_pending(page, to.is_none());
        }
        for Claimed(claim) in claims {
            let from = claim.from();
            guest.settle(claim, to.unwrap_or(from));
        }
        if to.is_some() {
            guest.counters.blocks_rebuilt.add(1);
            guest.add_mappings(-2);
        }
        to.is_some()
    }

    /// Claims what of `run` is mapped from a pool.
    pub(crate) fn claim_shared(&self, run: PageRun) -> Vec<Claim> {
        let table = &self.guest.table;
        let mut claims = Vec::new();
        let mut at = run.first.get();
        while at < run.end() {
            while table.is_held(at) {
                // The handler has it, for a moment.
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

/// Starts watching claimed pages that nobody watched so far, and settles each as what it is.
pub(crate) fn manage(guest: &Guest, claim: Claim, pagemap: &mut Pagemap) {
    let run = claim.run();
    let span = guest.span(run);
    let mut found = Vec::new();
    let watched = span
        .flag_private()
        .and_then(|()| guest.watch.register(span, Watch::MissingAndWrites))
        .and_then(|()| pagemap.scan(span, Look::Populated, &mut found));
    if let Err(error) = watched {
        fatal(format_args!("{run:?} cannot be watched: {error}"));
    }
    let mut left = claim;
    for found in found {
        let first = guest
            .layout
            .page_at(found.start)
            .expect("found where it was looked for");
        let pages = ((found.end - found.start) / crate::page::PAGE_SIZE) as u32;
        let before = first - left.run().first.get();
        let (empty, rest) = left.split(before);
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
