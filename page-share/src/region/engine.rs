//! The engine: what one thread at a time does to a guest's pages, under the region's engine lock.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::io::Errno;

use crate::hash::Sketch;
use crate::page::{Gfn, PAGE_SIZE, Page};
use crate::region::guest::shared::Guest;
use crate::region::kernel::memory::{Arena, Span};
use crate::region::kernel::userfault::{Found, Pagemap};
use crate::region::merge::pools::Pools;
use crate::region::merge::rehome_arena::Spare;
use crate::region::run::PageRun;
use crate::region::table::state::{Claim, Pinned, State, mark};

/// Most pages held at a time: a thread that touches one of them waits until the whole batch is done.
pub(crate) const BATCH: u32 = 128;

/// Pages in staging, several batches.
const STAGING: u32 = 512;

/// How often a move is tried again when the kernel says that it was disturbed.
const MOVE_TRIES: u32 = 32;

/// How long a broken page has been quiet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quiet {
    pub(crate) sketch: Sketch,
    pub(crate) passes: u8,
}

/// Everything that the thread holding the engine lock works with.
pub(crate) struct Engine {
    pub(crate) guest: Arc<Guest>,
    pub(crate) pools: Pools,
    pub(crate) pagemap: Pagemap,
    /// The host has swap space of its own, into which the kernel may put broken pages. As at the pass's beginning: it
    /// comes and goes.
    pub(crate) host_swaps: bool,
    /// /proc/swaps, opened once: a process that is confined later cannot open anything.
    swaps: Option<File>,
    /// Room for one scan's answer.
    pub(crate) found: Vec<Found>,
    /// Broken pages and since when they are quiet.
    pub(crate) broken: HashMap<u32, Quiet>,
    /// For each chunk, passes to go before broken pages are looked for again.
    pub(crate) calm: Vec<u8>,
    /// Places whose last mapping is gone and whose references are to be returned.
    pub(crate) returns: Vec<u32>,
    /// Pages that the manager should forget as hints.
    pub(crate) withdrawals: Vec<Gfn>,
    pub(crate) sample: crate::region::reclaim::sample::Running,
    pub(crate) spare: Spare,
    staging: Arena,
    /// Pages of staging in use, from the start.
    staged_pages: u32,
    /// Where in staging the last batch is.
    batch_at: u32,
    aside: Box<[Page]>,
}

impl Engine {
    /// An engine with its staging area, watched like the guest.
    pub(crate) fn new(guest: Arc<Guest>) -> std::io::Result<Self> {
        let staging = Arena::reserve(STAGING as usize)?;
        guest
            .watch
            .register(staging.span(), crate::region::kernel::userfault::Watch::Missing)?;
        Ok(Self {
            guest,
            pools: Pools::default(),
            pagemap: Pagemap::open()?,
            host_swaps: true,
            swaps: File::open("/proc/swaps").ok(),
            found: Vec::with_capacity(1024),
            broken: HashMap::new(),
            calm: Vec::new(),
            returns: Vec::new(),
            withdrawals: Vec::new(),
            sample: crate::region::reclaim::sample::Running::default(),
            spare: Spare::new(),
            staging,
            staged_pages: 0,
            batch_at: 0,
            aside: vec![[0; PAGE_SIZE]; BATCH as usize].into_boxed_slice(),
        })
    }

    /// Finds out whether the host swaps at present. A kernel that cannot says so by having no list.
    pub(crate) fn look_for_host_swap(&mut self) {
        let mut text = [0; 512];
        self.host_swaps = self.swaps.as_ref().is_some_and(|swaps| {
            let Ok(len) = swaps.read_at(&mut text, 0) else {
                return true;
            };
            // One line of headings, and one for each swap space.
            text[..len].iter().filter(|&&byte| byte == b'\n').count() > 1
        });
    }

    /// Where `run` of the batch that starts at `first`, the one taken last, waits.
    pub(crate) fn staged(&self, first: Gfn, run: PageRun) -> Span {
        let offset = self.batch_at + (run.first.get() - first.get());
        self.staging.span().sub(offset as usize, run.count as usize)
    }

    /// Takes what is private of `run`, at most [`BATCH`] pages, into staging. Each claim's pages are in staging at the
    /// place that [`Engine::staged`] says until the next take; a thread that touches them waits until they are settled.
    pub(crate) fn take(&mut self, run: PageRun) -> Vec<Claim> {
        if self.staged_pages + run.count > STAGING {
            self.clear_staging();
            if self.staged_pages + run.count > STAGING {
                return Vec::new();
            }
        }
        self.batch_at = self.staged_pages;
        self.staged_pages += run.count;
        let to = self.staged(run.first, run);
        let mut taken = Vec::new();
        let mut at = run.first.get();
        while at < run.end() {
            let table = &self.guest.table;
            let excluded = |&page: &u32| table.is_marked(page, mark::EXCLUDED);
            let rest = PageRun::of(at..(at..run.end()).find(excluded).unwrap_or(run.end()));
            let state = table.state(at);
            let claim = match state {
                _ if rest.count == 0 => None,
                State::Private | State::Zero => self.guest.claim_run(rest, state, Pinned::Leave),
                _ => None,
            };
            let Some(claim) = claim else {
                at += 1;
                continue;
            };
            let offset = (at - run.first.get()) as usize;
            at = claim.run().end();
            let to = to.sub(offset, claim.run().count as usize);
            move_out(&self.guest, claim, to, &mut taken);
        }
        taken
    }

    /// Moves a taken run back as it was.
    pub(crate) fn give_back(&self, first: Gfn, claim: Claim) {
        let (run, from) = (claim.run(), claim.from());
        self.guest.give_back_all(run, self.staged(first, run));
        self.guest.settle(claim, from);
    }

    /// Empties staging of what was merged, stored or mapped elsewhere. Done for several batches at once, and at the
    /// end of every piece of work.
    pub(crate) fn clear_staging(&mut self) {
        if self.staged_pages == 0 {
            return;
        }
        match self.staging.span().sub(0, self.staged_pages as usize).discard() {
            Ok(()) => self.staged_pages = 0,
            // Nothing is moved there again before it is empty.
            Err(error) => log::warn!("staging cannot be emptied: {error}"),
        }
    }

    /// Copies the pages of `run`, at most [`BATCH`], aside. They must be readable without a fault that needs us.
    pub(crate) fn copy_aside(&mut self, run: PageRun) -> &[Page] {
        let span = self.guest.span(run);
        let pages = &mut self.aside[..run.count as usize];
        for (index, page) in pages.iter_mut().enumerate() {
            span.copy_out(index, page);
        }
        pages
    }

    /// Room for `pages` pages, the same as [`Engine::copy_aside`] uses.
    pub(crate) fn aside_mut(&mut self, pages: u32) -> &mut [Page] {
        &mut self.aside[..pages as usize]
    }

    /// What [`Engine::copy_aside`] copied last.
    pub(crate) fn aside(&self, pages: u32) -> &[Page] {
        &self.aside[..pages as usize]
    }

    /// Pages `page` leaves the pool or the guest: what is remembered about it besides its state.
    pub(crate) fn forget_hint(&mut self, page: u32) {
        if self.guest.table.clear_marks(page, mark::REPORTED) {
            self.withdrawals.push(Gfn::new(page));
        }
        self.guest.table.set_pending(page, false);
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
    let (page, from) = (claim.run().first.get(), claim.from());
    match error {
        // Nothing was there: dropped by code outside the region.
        Errno::NOENT => guest.settle(claim, State::Empty),
        Errno::AGAIN | Errno::NOMEM => guest.settle(claim, from),
        // Pinned, shared with a child, locked since it was adopted, mapped anew by the caller ...
        _ => {
            guest.table.add_marks(page, mark::STUCK);
            guest.counters.pages_stuck.add(1);
            guest.settle(claim, from);
        }
    }
}

impl Engine {
    /// Copies taken pages of `run` out of staging, to [`Engine::aside`].
    pub(crate) fn copy_staged_aside(&mut self, batch: PageRun, run: PageRun) {
        let staged = self.staged(batch.first, run);
        for (index, page) in self.aside[..run.count as usize].iter_mut().enumerate() {
            staged.copy_out(index, page);
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("broken", &self.broken.len())
            .finish_non_exhaustive()
    }
}
