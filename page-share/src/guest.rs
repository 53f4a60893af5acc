//! What the manager remembers of one guest: its hints, its references, its waiting offers.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use crate::counts::Counts;
use crate::index::Trace;
use crate::page::Gfn;
use crate::port::{Invalid, Offer, REPORT_BATCH};
use crate::sparse::Sparse;

/// One guest of a domain.
#[derive(Debug)]
pub(crate) struct Guest {
    /// Size of the guest: every gfn is below it.
    pages: u32,
    /// For every page that is a hint, the trace of its entry in the index; zero for all others.
    hints: Sparse<u32>,
    held: Counts,
    offers: Vec<Offer>,
    offers_ready: Arc<OwnedFd>,
}

impl Guest {
    pub(crate) fn new(pages: u32) -> io::Result<Self> {
        Ok(Self {
            pages,
            hints: Sparse::new(),
            held: Counts::new(),
            offers: Vec::new(),
            offers_ready: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
        })
    }

    /// Checks that `gfn` is a page of this guest.
    pub(crate) fn check(&self, gfn: Gfn) -> Result<(), Invalid> {
        let pages = self.pages;
        if gfn.get() < pages {
            return Ok(());
        }
        Err(Invalid::Gfn { gfn, pages })
    }

    /// Remembers that `gfn` is the hint in the entry that `trace` leads to.
    pub(crate) fn set_hint(&mut self, gfn: Gfn, trace: Trace) {
        self.hints.replace(gfn.get(), trace.bits());
    }

    /// The entry that `gfn` is the hint of; not remembered any more.
    pub(crate) fn take_hint(&mut self, gfn: Gfn) -> Option<Trace> {
        Trace::from_bits(self.hints.replace(gfn.get(), 0))
    }

    /// Every page that is a hint.
    pub(crate) fn hints(&self) -> impl Iterator<Item = (Gfn, Trace)> + '_ {
        let hints = self.hints.iter();
        hints.filter_map(|(gfn, bits)| Some((Gfn::new(gfn), Trace::from_bits(bits)?)))
    }

    /// Whether one more reference is within reason: two for each page (a broken copy's, not released yet, and its
    /// successor's) and a batch under way.
    pub(crate) fn may_hold_more(&self) -> bool {
        self.held.total() < u64::from(self.pages) * 2 + REPORT_BATCH as u64
    }

    /// References that this guest holds.
    pub(crate) fn held(&self) -> &Counts {
        &self.held
    }

    /// See [`held`](Self::held).
    pub(crate) fn held_mut(&mut self) -> &mut Counts {
        &mut self.held
    }

    /// Queues an offer, which is a reference already.
    pub(crate) fn offer(&mut self, offer: Offer) {
        if self.offers.is_empty() {
            // Fails only when the counter is full, which means the same: ready.
            let _ = rustix::io::write(&*self.offers_ready, &1u64.to_ne_bytes());
        }
        self.offers.push(offer);
    }

    /// Moves up to a batch of offers into `offers`, in gfn order.
    pub(crate) fn fetch_offers(&mut self, offers: &mut Vec<Offer>) {
        self.offers.sort_unstable_by_key(|offer| offer.gfn);
        let count = self.offers.len().min(REPORT_BATCH);
        offers.extend(self.offers.drain(..count));
        if self.offers.is_empty() {
            self.offers.shrink_to(REPORT_BATCH);
            // Fails only when there is nothing to clear.
            let _ = rustix::io::read(&*self.offers_ready, &mut [0; 8]);
        }
    }

    /// Polls readable while offers wait.
    pub(crate) fn offers_ready(&self) -> &Arc<OwnedFd> {
        &self.offers_ready
    }

    /// Drops everything that waits to be fetched; the references stay.
    pub(crate) fn forget_offers(&mut self) {
        let _ = rustix::io::read(&*self.offers_ready, &mut [0; 8]);
        self.offers = Vec::new();
    }

    /// Bytes of memory in use.
    pub(crate) fn bytes(&self) -> usize {
        self.hints.bytes() + self.held.bytes() + self.offers.capacity() * size_of::<Offer>()
    }
}
