//! How is a page taken away from its guest so that no thread can write it, and given back?
//!
//! # Nouns
//! - **Staging** is a watched area of our own. Taken pages wait there; a thread that touches one waits until it is settled.
//! - A **batch** is what was taken last, at most [`BATCH`] pages.
//! - **Aside** are private copies of pages: bytes to fill from, or to write to the disk.
//!
//! # Who owns whom
//! The [`Mover`] owns staging and the copies. It is used by one thread at a time, under the region's engine lock. Claims
//! belong to the caller, who settles them.
//!
//! # Invariants
//! 1. A place in staging is used again only after it was emptied.
//! 2. What the kernel refuses to move stays where it is, with the state that it had.

use std::sync::Arc;

use rustix::io::Errno;

use crate::page::{Gfn, PAGE_SIZE, Page};
use crate::region::guest::Guest;
use crate::region::kernel::{Arena, Span, Watch};
use crate::region::run::PageRun;
use crate::region::table::{Claim, Marks, Pinned, State};

/// Most pages held at a time: a thread that touches one of them waits until the whole batch is done.
pub(crate) const BATCH: u32 = 128;

/// Pages in staging, several batches.
const STAGING: u32 = 512;

/// How often a move is tried again when the kernel says that it was disturbed.
const MOVE_TRIES: u32 = 32;

/// Takes pages and gives them back.
pub(crate) struct Mover {
    guest: Arc<Guest>,
    staging: Arena,
    /// Pages of staging in use, from the start.
    staged_pages: u32,
    /// Where in staging the batch is, and its first page.
    batch_at: u32,
    batch_first: Gfn,
    aside: Box<[Page]>,
}

impl Mover {
    /// A mover with its staging area, watched like the guest.
    pub(crate) fn new(guest: Arc<Guest>) -> std::io::Result<Self> {
        let staging = Arena::reserve(STAGING as usize)?;
        guest.watch_area(staging.span(), Watch::Missing)?;
        Ok(Self {
            guest,
            staging,
            staged_pages: 0,
            batch_at: 0,
            batch_first: Gfn::new(0),
            aside: vec![[0; PAGE_SIZE]; BATCH as usize].into_boxed_slice(),
        })
    }

    /// Where `run`, a part of the batch, waits.
    pub(crate) fn staged(&self, run: PageRun) -> Span {
        let offset = self.batch_at + run.first.since(self.batch_first);
        self.staging.span().sub(offset as usize, run.count as usize)
    }

    /// Whether a taken page of the batch is all zeros.
    pub(crate) fn is_zero(&self, page: Gfn) -> bool {
        self.staged(PageRun::one(page)).page_is_zero(0)
    }

    /// Takes what is private of `run`, at most [`BATCH`] pages, into staging. It is the batch from now on: until the next
    /// take [`Mover::staged`] says where a claim's pages are, and a thread that touches them waits until they are settled.
    pub(crate) fn take(&mut self, run: PageRun) -> Vec<Claim> {
        if self.staged_pages + run.count > STAGING {
            self.clear();
            if self.staged_pages + run.count > STAGING {
                return Vec::new();
            }
        }
        (self.batch_at, self.batch_first) = (self.staged_pages, run.first);
        self.staged_pages += run.count;
        let mut taken = Vec::new();
        let mut at = run.first;
        while at < run.end() {
            let table = self.guest.table();
            let excluded = |page: &Gfn| table.is_marked(*page, Marks::EXCLUDED);
            let end = run.rest(at).pages().find(excluded).unwrap_or(run.end());
            let rest = PageRun::between(at, end);
            let state = table.state(at);
            let claim = match state {
                _ if rest.count == 0 => None,
                State::Private | State::Zero => self.guest.claim_run(rest, state, Pinned::Leave),
                _ => None,
            };
            let Some(claim) = claim else {
                at = at.plus(1);
                continue;
            };
            at = claim.run().end();
            let to = self.staged(claim.run());
            move_out(&self.guest, claim, to, &mut taken);
        }
        taken
    }

    /// Moves a taken run of the batch back as it was.
    pub(crate) fn give_back(&self, claim: Claim) {
        self.guest.give_back_all(claim.run(), self.staged(claim.run()));
        self.guest.unclaim(claim);
    }

    /// Empties staging of what was merged, stored or mapped elsewhere. Done for several batches at once, and at the
    /// end of every piece of work.
    pub(crate) fn clear(&mut self) {
        if self.staged_pages == 0 {
            return;
        }
        match self.staging.span().sub(0, self.staged_pages as usize).discard() {
            Ok(()) => self.staged_pages = 0,
            // Nothing is moved there again before it is empty.
            Err(error) => log::warn!("staging cannot be emptied: {error}"),
        }
    }

    /// Copies guest pages, at most [`BATCH`], aside. They must be readable without a fault that needs us.
    pub(crate) fn copy_aside(&mut self, run: PageRun) -> &[Page] {
        let from = self.guest.span(run);
        self.copy_out(from)
    }

    /// Copies taken pages of the batch aside.
    pub(crate) fn copy_staged_aside(&mut self, run: PageRun) -> &[Page] {
        let from = self.staged(run);
        self.copy_out(from)
    }

    fn copy_out(&mut self, from: Span) -> &[Page] {
        let pages = &mut self.aside[..from.pages()];
        for (index, page) in pages.iter_mut().enumerate() {
            from.copy_out(index, page);
        }
        pages
    }

    /// What was copied aside last.
    pub(crate) fn aside(&self, pages: u32) -> &[Page] {
        &self.aside[..pages as usize]
    }

    /// Room for `pages` pages, the same as for copies aside.
    pub(crate) fn aside_mut(&mut self, pages: u32) -> &mut [Page] {
        &mut self.aside[..pages as usize]
    }
}

/// Moves one claimed run to `to`; what the kernel refuses stays where it is. Each claim in `taken` was in one mapping.
pub(crate) fn move_out(guest: &Guest, claim: Claim, to: Span, taken: &mut Vec<Claim>) {
    let (mut left, mut done, mut tries) = (claim, 0, 0);
    let mut most = left.run().count;
    while left.run().count > 0 {
        let pages = left.run().count.min(most);
        let run = PageRun::new(left.run().first, pages);
        let progress = guest.move_to_us(guest.span(run), to.sub(done, pages as usize));
        if progress.pages > 0 {
            let (moved, rest) = left.split(progress.pages as u32);
            done += progress.pages;
            taken.push(moved);
            left = rest;
        }
        match progress.stopped {
            None => most = left.run().count,
            Some(Errno::AGAIN) if progress.pages > 0 => {}
            // The run spans several mappings, which one call cannot: look for where the first ends.
            Some(Errno::INVAL) if pages > 1 => most = pages / 2,
            Some(Errno::AGAIN) if tries < MOVE_TRIES => {
                tries += 1;
                std::thread::yield_now();
            }
            Some(error) => {
                // This page cannot be moved, or not now; the next ones perhaps.
                let (refused, rest) = left.split(1);
                if error == Errno::EXIST {
                    // Of ours nothing is there yet: what is in the way goes.
                    guest.forget_copied(to.sub(done, 1));
                }
                refuse(guest, refused, error);
                (done, tries) = (done + 1, 0);
                left = rest;
            }
        }
    }
    drop(left);
}

fn refuse(guest: &Guest, claim: Claim, error: Errno) {
    let page = claim.run().first;
    match error {
        // Nothing was there: dropped by code outside the region.
        Errno::NOENT => guest.settle(claim, State::Empty),
        Errno::AGAIN | Errno::NOMEM => guest.unclaim(claim),
        // Pinned, shared with a child, locked since it was adopted, mapped anew by the caller ...
        _ => {
            guest.table().add_marks(page, Marks::STUCK);
            guest.counters().pages_stuck.add(1);
            guest.unclaim(claim);
        }
    }
}
