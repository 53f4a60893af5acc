//! What the manager remembers of one guest: its hints, its references, its waiting offers.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::counts::Counts;
use crate::death::GuestProcess;
use crate::index::Trace;
use crate::page::{Epoch, Gfn, Slot};
use crate::port::{Invalid, Offer, REPORT_BATCH};
use crate::sparse::Sparse;

/// One guest of a domain.
#[derive(Debug)]
pub(crate) struct AttachedGuest {
    /// Size of the guest: every gfn is below it.
    pages: u32,
    /// Since its newest connection.
    epoch: Epoch,
    /// The process whose death ends it; none for a guest of this process.
    process: Option<GuestProcess>,
    /// For every page that is a hint, the trace of its entry in the index; zero for all others.
    hints: Sparse<u32>,
    held: Counts,
    offers: Vec<Offer>,
    /// The end of a pipe that the guest's process polls: readable while offers may wait. Only ever this end leaves the
    /// manager, so nothing a process does to it can make the manager block.
    offers_ready: Arc<OwnedFd>,
    ring: OwnedFd,
}

impl AttachedGuest {
    pub(crate) fn new(pages: u32, epoch: Epoch, process: Option<GuestProcess>) -> io::Result<Self> {
        let (offers_ready, ring) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self {
            pages,
            epoch,
            process,
            hints: Sparse::new(),
            held: Counts::new(),
            offers: Vec::new(),
            offers_ready: Arc::new(offers_ready),
            ring,
        })
    }

    /// Pages that it has.
    pub(crate) fn pages(&self) -> u32 {
        self.pages
    }

    /// The only epoch in which it is heard.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// From now on only what has this epoch speaks for it.
    pub(crate) fn renew(&mut self, epoch: Epoch) {
        self.epoch = epoch;
    }

    /// The process whose death ends it.
    pub(crate) fn process(&self) -> Option<&GuestProcess> {
        self.process.as_ref()
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
            self.ring();
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
        } else {
            self.ring();
        }
    }

    fn ring(&self) {
        // Fails only when the pipe is full, which says the same: ready.
        let _ = rustix::io::write(&self.ring, &[1]);
    }

    /// Polls readable while offers wait.
    pub(crate) fn offers_ready(&self) -> &Arc<OwnedFd> {
        &self.offers_ready
    }

    /// Drops everything that waits to be fetched; the references stay.
    pub(crate) fn forget_offers(&mut self) {
        self.offers = Vec::new();
    }

    /// Drops everything that waits to be fetched, and holds it no longer; the domain's count of these references is still
    /// to be lowered.
    pub(crate) fn drop_offers(&mut self) -> Vec<Slot> {
        let slots: Vec<Slot> = std::mem::take(&mut self.offers)
            .into_iter()
            .map(|offer| offer.slot)
            .collect();
        for &slot in &slots {
            self.held.take(slot, 1);
        }
        slots
    }

    /// Bytes of memory in use.
    pub(crate) fn bytes(&self) -> usize {
        self.hints.bytes() + self.held.bytes() + self.offers.capacity() * size_of::<Offer>()
    }
}

/// Empties the pipe of [`AttachedGuest::offers_ready`]. Always before the offers are fetched, so that none is missed.
pub(crate) fn drain(offers_ready: &OwnedFd) {
    let mut rings = [0; 64];
    while rustix::io::read(offers_ready, &mut rings).is_ok_and(|count| count > 0) {}
}
