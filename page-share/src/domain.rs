//! A sharing domain as the manager keeps it: the index, the pool, and which guest refers to what.
//!
//! # What a hostile guest's process can do, and what still holds
//! It controls every number and byte that reaches this file. It cannot name another guest's pages, hold fewer
//! references than zero or more than its size warrants, put bytes into the pool under a name they do not have, or
//! change a page that others read. It can fill the pool with pages of its own making, named twice by the guest itself
//! (bounded by [`PoolLimit::alone`]) or with another guest's help (by the pool's limit), report pages it does not have
//! (its own entries in the index, bounded by its size, each as quickly found as any other) and learn that some other
//! guest of its domain has a content it knows: that is what sharing a domain means. What it was given stays with
//! whatever it handed its descriptors to: the pool can be read for ever, but no one speaks for a guest that has ended
//! or has a newer connection.
//!
//! # Invariants
//! 1. A slot is in use exactly while it has references, and exactly then the index has it, or another with its content,
//!    as shared.
//! 2. A guest remembers a hint exactly while the index has that page as a hint.
//! 3. A request is done only in the epoch of its guest's newest connection; references end as `attach.rs` says.
//! 4. The references to a slot are the sum of what its guests hold; an offer is held from when it is queued.
//!
//! [`Domain::check`] tests 1, 2 and 4 and the model test runs it after every step.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::attach::Attachment;
use crate::counts::Counts;
use crate::guest::AttachedGuest;
use crate::hash::{DomainKey, PageHasher, Sketch, fill_random};
use crate::index::{Holder, Index};
use crate::page::{Epoch, Gfn, GuestId, PoolGeneration, Slot};
use crate::pool::{Pool, PoolLimit};
use crate::port::{Answer, Invalid, Offer, PortError, REPORT_BATCH, Report, Session};
use crate::replicas::Replicas;

/// A sharing domain.
#[derive(Debug)]
pub struct Domain {
    pub(crate) key: DomainKey,
    pub(crate) hasher: PageHasher,
    pub(crate) generation: PoolGeneration,
    pub(crate) index: Index,
    pub(crate) pool: Pool,
    /// References to each slot, over all guests.
    pub(crate) references: Counts,
    pub(crate) replicas: Replicas,
    pub(crate) guests: BTreeMap<GuestId, AttachedGuest>,
    /// The epoch of the next connection.
    pub(crate) epoch: Epoch,
    /// Where to look for a free number first.
    pub(crate) next_guest: u16,
    pub(crate) counters: DomainCounters,
}

/// What a domain has counted since it began. Only ever grows.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DomainCounters {
    /// Pages reported.
    pub reports: u64,
    /// Reports answered with a page of the pool.
    pub answered_shared: u64,
    /// Pages that entered the pool.
    pub published: u64,
    /// Offers made to the pages behind hints.
    pub offered: u64,
    /// Publications refused because the pool or the guest's part of it was full.
    pub refused_full: u64,
    /// Publications whose bytes did not have their sketch: raced by the guest, or forged.
    pub refused_mismatch: u64,
    /// Publications whose sketch another content has.
    pub refused_collision: u64,
    /// Calls refused as a whole because they named something impossible: a broken or hostile guest's process.
    pub invalid_calls: u64,
    /// References granted to pages that were not named because their neighbours were.
    pub claimed: u64,
    /// Slots given back to the kernel.
    pub punched: u64,
    /// Times the kernel failed to punch; the memory stays until the slot is used again.
    pub punch_failures: u64,
}

/// A domain's size right now.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sizes {
    /// Guests attached.
    pub guests: u32,
    /// Pages that are hints.
    pub hints: u64,
    /// Pages in the pool, each once.
    pub pool_pages: u32,
    /// References to them, those of waiting offers included.
    pub references: u64,
    /// Bytes of the content index.
    pub index_bytes: u64,
    /// Bytes of slot names and counts.
    pub slot_bytes: u64,
    /// Bytes of the guests' hints, references and offers.
    pub guest_bytes: u64,
}

impl Sizes {
    /// Every byte the manager spends on the domain besides the pool's pages.
    pub fn metadata_bytes(&self) -> u64 {
        self.index_bytes + self.slot_bytes + self.guest_bytes
    }
}

/// Reports looked up side by side.
const WARM: usize = 64;

impl Domain {
    /// A domain with a fresh key and an empty pool of at most `page_limit` pages.
    ///
    /// # Errors
    /// When the kernel refuses a memfd, its seals or random bytes.
    pub fn new(page_limit: u32) -> io::Result<Self> {
        Self::with_key(DomainKey::random()?, page_limit)
    }

    /// Like [`new`](Self::new) with a given key, for tests that need the same sketches every time.
    ///
    /// # Errors
    /// See [`new`](Self::new).
    pub fn with_key(key: DomainKey, page_limit: u32) -> io::Result<Self> {
        let mut generation = [0; 8];
        fill_random(&mut generation)?;
        let generation = u64::from_le_bytes(generation);
        Ok(Self {
            hasher: PageHasher::new(&key),
            key,
            generation: PoolGeneration::new(generation),
            epoch: Epoch::new(generation),
            next_guest: 0,
            index: Index::new()?,
            pool: Pool::new(page_limit)?,
            references: Counts::new(),
            replicas: Replicas::default(),
            guests: BTreeMap::new(),
            counters: DomainCounters::default(),
        })
    }

    /// What a guest's process needs to take part.
    ///
    /// # Errors
    /// [`PortError::Superseded`].
    pub fn session(&self, from: Attachment) -> Result<Session, PortError> {
        Ok(Session {
            guest: self.authorize(from)?,
            generation: self.generation,
            key: self.key.clone(),
            pool: Arc::clone(self.pool.readers()),
            slot_limit: self.pool.slot_limit(),
        })
    }

    /// No page enters the pool beyond `limit` from now on, nor beyond what the domain was made for: pages that are sent
    /// are answered [`Refusal::PoolFull`](crate::port::Refusal::PoolFull). What is there stays.
    pub fn limit_pool(&mut self, limit: PoolLimit) {
        self.pool.set_limit(limit);
    }

    /// See [`Port::report`](crate::port::Port::report).
    ///
    /// # Errors
    /// [`PortError::Superseded`] and [`PortError::Invalid`]; nothing was done then.
    pub fn report(
        &mut self,
        from: Attachment,
        pages: &[Report],
        answers: &mut Vec<Answer>,
    ) -> Result<(), PortError> {
        answers.clear();
        let gfns = pages.iter().map(|report| report.gfn);
        let guest = self.check_pages(from, gfns, REPORT_BATCH)?;
        self.counters.reports += pages.len() as u64;
        for pages in pages.chunks(WARM) {
            self.index.warm(pages.iter().map(|report| report.sketch));
            answers.extend(pages.iter().map(|&report| self.report_one(guest, report)));
        }
        Ok(())
    }

    fn report_one(&mut self, guest: GuestId, report: Report) -> Answer {
        let Report { gfn, sketch } = report;
        match self.index.find(sketch) {
            Some(Holder::Hint(holder, page)) if (holder, page) == (guest, gfn) => Answer::Noted,
            Some(Holder::Hint(..)) => {
                self.drop_hint(guest, gfn);
                Answer::Publish
            }
            Some(Holder::Shared(slot)) => {
                self.drop_hint(guest, gfn);
                let slot = self.pick(guest, gfn, slot);
                if !self.grant(guest, slot) {
                    return Answer::Noted;
                }
                self.counters.answered_shared += 1;
                Answer::Shared(slot)
            }
            None => {
                self.drop_hint(guest, gfn);
                self.add_hint(guest, gfn, sketch);
                Answer::Noted
            }
        }
    }

    /// See [`Port::offers`](crate::port::Port::offers).
    ///
    /// # Errors
    /// [`PortError::Superseded`].
    pub fn offers(&mut self, from: Attachment, offers: &mut Vec<Offer>) -> Result<(), PortError> {
        offers.clear();
        self.guest_mut(from)?.fetch_offers(offers);
        Ok(())
    }

    /// Polls readable while offers wait for the guest.
    ///
    /// # Errors
    /// [`PortError::Superseded`].
    pub fn offers_ready(&self, from: Attachment) -> Result<Arc<OwnedFd>, PortError> {
        let guest = self.authorize(from)?;
        let state = self.guests.get(&guest);
        let state = state.ok_or(PortError::Superseded(guest))?;
        Ok(Arc::clone(state.offers_ready()))
    }

    /// See [`Port::withdraw`](crate::port::Port::withdraw).
    ///
    /// # Errors
    /// [`PortError::Superseded`] and [`PortError::Invalid`]; nothing was done then.
    pub fn withdraw(&mut self, from: Attachment, pages: &[Gfn]) -> Result<(), PortError> {
        let guest = self.check_pages(from, pages.iter().copied(), REPORT_BATCH)?;
        for &gfn in pages {
            self.drop_hint(guest, gfn);
        }
        Ok(())
    }

    /// See [`Port::release`](crate::port::Port::release).
    ///
    /// # Errors
    /// [`PortError::Superseded`], [`PortError::StaleGeneration`] and [`PortError::Invalid`]; nothing was done then.
    pub fn release(
        &mut self,
        from: Attachment,
        generation: PoolGeneration,
        slots: &[Slot],
    ) -> Result<(), PortError> {
        self.authorize(from)?;
        self.check_generation(generation)?;
        self.check_batch(slots.len(), REPORT_BATCH)?;
        let held = self.guest_mut(from)?.held_mut();
        let too_many = slots.iter().position(|&slot| held.take(slot, 1).is_none());
        if let Some(position) = too_many {
            for &slot in &slots[..position] {
                held.add(slot);
            }
            return Err(self.invalid(Invalid::NotHeld(slots[position])));
        }
        self.drop_references(slots);
        Ok(())
    }

    /// See [`Port::claim`](crate::port::Port::claim).
    ///
    /// A guest's process can read all of its domain's pool, so claiming tells and gives it nothing that reports would not.
    ///
    /// # Errors
    /// [`PortError::Superseded`], [`PortError::StaleGeneration`] and [`PortError::Invalid`]; nothing was granted then.
    pub fn claim(
        &mut self,
        from: Attachment,
        generation: PoolGeneration,
        slots: &[Slot],
        answers: &mut Vec<Answer>,
    ) -> Result<(), PortError> {
        answers.clear();
        let guest = self.authorize(from)?;
        self.check_generation(generation)?;
        self.check_batch(slots.len(), REPORT_BATCH)?;
        for &slot in slots {
            let granted = self.pool.content(slot).is_some() && self.grant(guest, slot);
            self.counters.claimed += u64::from(granted);
            answers.push(if granted {
                Answer::Shared(slot)
            } else {
                Answer::Noted
            });
        }
        Ok(())
    }

    fn check_generation(&self, slots: PoolGeneration) -> Result<(), PortError> {
        let session = self.generation;
        if slots == session {
            return Ok(());
        }
        Err(PortError::StaleGeneration { slots, session })
    }

    /// What the domain has counted.
    pub fn counters(&self) -> DomainCounters {
        self.counters
    }

    /// How large the domain is.
    pub fn sizes(&self) -> Sizes {
        let guest_bytes: usize = self.guests.values().map(AttachedGuest::bytes).sum();
        Sizes {
            guests: self.guests.len() as u32,
            hints: self.index.entries() as u64 - u64::from(self.pool.used() - self.replicas.copies()),
            pool_pages: self.pool.used(),
            references: self.references.total(),
            index_bytes: self.index.bytes() as u64,
            slot_bytes: (self.pool.bytes() + self.references.bytes() + self.replicas.bytes()) as u64,
            guest_bytes: guest_bytes as u64,
        }
    }

    /// Pages in the pool, each once.
    pub fn pool_pages(&self) -> u32 {
        self.pool.used()
    }

    /// The number of the pool's file, the same in every process that has the pool.
    ///
    /// # Errors
    /// When fstat(2) fails.
    pub fn pool_inode(&self) -> io::Result<u64> {
        self.pool.inode()
    }

    /// Bytes of memory that the pool takes, as the kernel counts them.
    ///
    /// # Errors
    /// When fstat(2) fails.
    pub fn pool_bytes(&self) -> io::Result<u64> {
        self.pool.resident_bytes()
    }

    /// Whether `guest` may get another reference.
    pub(crate) fn may_hold_more(&self, guest: GuestId) -> bool {
        self.guests.get(&guest).is_some_and(AttachedGuest::may_hold_more)
    }

    /// Takes a reference to `slot` for `guest`; false when the guest holds more than it can use.
    pub(crate) fn grant(&mut self, guest: GuestId, slot: Slot) -> bool {
        let allowed = self.may_hold_more(guest);
        if allowed {
            self.hold(guest, slot);
        }
        allowed
    }

    /// Takes a reference to `slot` for `guest`, which the caller has asked about before.
    pub(crate) fn hold(&mut self, guest: GuestId, slot: Slot) {
        if let Some(state) = self.guests.get_mut(&guest) {
            state.held_mut().add(slot);
            self.references.add(slot);
        }
    }

    /// Makes `gfn` the hint of a content that the index does not know.
    pub(crate) fn add_hint(&mut self, guest: GuestId, gfn: Gfn, sketch: Sketch) {
        if let Some(state) = self.guests.get_mut(&guest) {
            let trace = self.index.add(sketch, Holder::Hint(guest, gfn));
            state.set_hint(gfn, trace);
        }
    }

    /// Makes `gfn` a hint no longer, if it is one.
    pub(crate) fn drop_hint(&mut self, guest: GuestId, gfn: Gfn) {
        let state = self.guests.get_mut(&guest);
        if let Some(trace) = state.and_then(|state| state.take_hint(gfn)) {
            self.index.remove_traced(trace, Holder::Hint(guest, gfn));
        }
    }

    /// Makes no page of `guest` a hint any longer.
    pub(crate) fn drop_hints(&mut self, guest: GuestId) {
        let state = self.guests.get(&guest);
        let hints: Vec<Gfn> = state
            .into_iter()
            .flat_map(AttachedGuest::hints)
            .map(|(gfn, _)| gfn)
            .collect();
        for gfn in hints {
            self.drop_hint(guest, gfn);
        }
    }

    /// Takes one reference off each slot named and frees those that have none left.
    pub(crate) fn drop_references(&mut self, slots: &[Slot]) {
        let references = &mut self.references;
        let mut freed: Vec<Slot> = slots
            .iter()
            .copied()
            .filter(|&slot| references.take(slot, 1) == Some(0))
            .collect();
        self.free(&mut freed);
    }

    /// Empties slots that have no reference left.
    pub(crate) fn free(&mut self, slots: &mut [Slot]) {
        for &slot in slots.iter() {
            if let Some(content) = self.pool.content(slot) {
                self.unname(slot, content);
            }
        }
        match self.pool.free(slots) {
            Ok(()) => self.counters.punched += slots.len() as u64,
            Err(_) => self.counters.punch_failures += 1,
        }
    }

    /// The guest that `from` may speak for.
    pub(crate) fn guest_mut(&mut self, from: Attachment) -> Result<&mut AttachedGuest, PortError> {
        let guest = self.authorize(from)?;
        self.guests.get_mut(&guest).ok_or(PortError::Superseded(guest))
    }

    pub(crate) fn check_batch(&mut self, count: usize, limit: usize) -> Result<(), PortError> {
        if count <= limit {
            return Ok(());
        }
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let limit = limit as u32;
        Err(self.invalid(Invalid::Batch { count, limit }))
    }

    /// The guest that `from` may speak for, if all of `gfns` are its pages and not too many.
    pub(crate) fn check_pages(
        &mut self,
        from: Attachment,
        mut gfns: impl ExactSizeIterator<Item = Gfn>,
        limit: usize,
    ) -> Result<GuestId, PortError> {
        let guest = self.authorize(from)?;
        self.check_batch(gfns.len(), limit)?;
        let state = self.guest_mut(from)?;
        let outcome = gfns.try_for_each(|gfn| state.check(gfn));
        outcome.map_err(|invalid| self.invalid(invalid))?;
        Ok(guest)
    }

    pub(crate) fn invalid(&mut self, invalid: Invalid) -> PortError {
        self.counters.invalid_calls += 1;
        PortError::Invalid(invalid)
    }
}
