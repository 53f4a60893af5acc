//! A sharing domain as the manager keeps it: the index, the pool, and which guest refers to what.
//!
//! # What a hostile guest's process can do, and what still holds
//! It controls every number and byte that reaches this file. It cannot name another guest's pages, hold fewer
//! references than zero or more than its size warrants, put bytes into the pool under a name they do not have, or
//! change a page that others read. It can fill its part of the pool with twins of its own making (bounded by the
//! pool's limit), report pages it does not have (its own entries in the index, bounded by its size) and learn that
//! some other guest of its domain has a content it knows: that is what sharing a domain means.
//!
//! # Invariants
//! 1. A slot is in use exactly while it has references, and exactly then the index has it, or another with its content,
//!    as shared.
//! 2. A guest remembers a hint exactly while the index has that page as a hint.
//! 3. The references to a slot are the sum of what its guests hold; an offer is held from when it is queued.
//!
//! [`Domain::check`] tests all three and the model test runs it after every step.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::counts::Counts;
use crate::guest::Guest;
use crate::hash::{DomainKey, PageHasher, Sketch, fill_random};
use crate::index::{Holder, Index, Trace};
use crate::page::{Gfn, GuestId, PoolGeneration, Slot};
use crate::pool::Pool;
use crate::port::{Answer, Invalid, Offer, PortError, REPORT_BATCH, Report, Session};
use crate::series::AllSeries;

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
    pub(crate) series: AllSeries,
    pub(crate) guests: BTreeMap<GuestId, Guest>,
    pub(crate) counters: Counters,
}

/// What a domain has counted since it began. Only ever grows.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
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
    /// Every byte the manager spends on the domain beside the pool's pages.
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
        Ok(Self {
            hasher: PageHasher::new(&key),
            key,
            generation: PoolGeneration::new(u64::from_le_bytes(generation)),
            index: Index::new(),
            pool: Pool::new(page_limit)?,
            references: Counts::new(),
            series: AllSeries::default(),
            guests: BTreeMap::new(),
            counters: Counters::default(),
        })
    }

    /// Takes a guest of `pages` pages in.
    ///
    /// # Errors
    /// When the domain has 65,536 guests or the kernel refuses an eventfd.
    pub fn attach(&mut self, pages: u32) -> io::Result<GuestId> {
        let free = (0..=u16::MAX).map(GuestId::new);
        let guest = free
            .into_iter()
            .find(|id| !self.guests.contains_key(id))
            .ok_or_else(|| io::Error::other("the sharing domain has 65536 guests already"))?;
        self.guests.insert(guest, Guest::new(pages)?);
        Ok(guest)
    }

    /// Drops everything of a guest. Only once its process is dead: a mapping of its own could otherwise outlive the
    /// page. A closed socket is not death.
    pub fn detach(&mut self, guest: GuestId) {
        self.drop_hints(guest);
        self.pool.close_window(guest);
        let Some(state) = self.guests.remove(&guest) else {
            return;
        };
        let mut freed = Vec::new();
        for (slot, count) in state.held().iter() {
            if self.references.take(slot, count) == Some(0) {
                freed.push(slot);
            }
        }
        self.free(&mut freed);
    }

    /// What the process of `guest` needs to take part.
    ///
    /// # Errors
    /// [`Invalid::NotAttached`].
    pub fn session(&self, guest: GuestId) -> Result<Session, Invalid> {
        if !self.guests.contains_key(&guest) {
            return Err(Invalid::NotAttached(guest));
        }
        Ok(Session {
            guest,
            generation: self.generation,
            key: self.key.clone(),
            pool: Arc::clone(self.pool.readers()),
            slot_limit: self.pool.slot_limit(),
        })
    }

    /// See [`Port::report`](crate::port::Port::report).
    ///
    /// # Errors
    /// [`PortError::Invalid`]; nothing was done then.
    pub fn report(
        &mut self,
        guest: GuestId,
        pages: &[Report],
        answers: &mut Vec<Answer>,
    ) -> Result<(), PortError> {
        answers.clear();
        let gfns = pages.iter().map(|report| report.gfn);
        self.check_pages(guest, gfns, REPORT_BATCH)?;
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
                self.set_hint(guest, gfn, sketch);
                Answer::Noted
            }
        }
    }

    /// See [`Port::offers`](crate::port::Port::offers).
    ///
    /// # Errors
    /// [`PortError::Invalid`].
    pub fn offers(&mut self, guest: GuestId, offers: &mut Vec<Offer>) -> Result<(), PortError> {
        offers.clear();
        self.guest_mut(guest)?.fetch_offers(offers);
        Ok(())
    }

    /// Polls readable while offers wait for `guest`.
    ///
    /// # Errors
    /// [`Invalid::NotAttached`].
    pub fn offers_ready(&self, guest: GuestId) -> Result<Arc<OwnedFd>, Invalid> {
        let state = self.guests.get(&guest).ok_or(Invalid::NotAttached(guest))?;
        Ok(Arc::clone(state.offers_ready()))
    }

    /// See [`Port::withdraw`](crate::port::Port::withdraw).
    ///
    /// # Errors
    /// [`PortError::Invalid`]; nothing was done then.
    pub fn withdraw(&mut self, guest: GuestId, pages: &[Gfn]) -> Result<(), PortError> {
        self.check_pages(guest, pages.iter().copied(), REPORT_BATCH)?;
        for &gfn in pages {
            self.drop_hint(guest, gfn);
        }
        Ok(())
    }

    /// See [`Port::release`](crate::port::Port::release).
    ///
    /// # Errors
    /// [`PortError::StaleGeneration`] and [`PortError::Invalid`]; nothing was done then.
    pub fn release(
        &mut self,
        guest: GuestId,
        generation: PoolGeneration,
        slots: &[Slot],
    ) -> Result<(), PortError> {
        self.check_generation(generation)?;
        self.check_batch(slots.len(), REPORT_BATCH)?;
        let held = self.guest_mut(guest)?.held_mut();
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
    /// [`PortError::StaleGeneration`] and [`PortError::Invalid`]; nothing was granted then.
    pub fn claim(
        &mut self,
        guest: GuestId,
        generation: PoolGeneration,
        slots: &[Slot],
        answers: &mut Vec<Answer>,
    ) -> Result<(), PortError> {
        answers.clear();
        self.check_generation(generation)?;
        self.check_batch(slots.len(), REPORT_BATCH)?;
        self.guest_mut(guest)?;
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

    /// Makes `held` the whole of what `guest` refers to, after its connection was lost with answers on the way: one
    /// entry for each reference. Its hints and waiting offers are forgotten.
    ///
    /// # Errors
    /// [`PortError::Invalid`] when a reference is named that the guest never had; nothing was done then.
    pub fn restate(&mut self, guest: GuestId, held: &[Slot]) -> Result<(), PortError> {
        let recorded = self.guest_mut(guest)?.held();
        let mut claimed = Counts::new();
        for &slot in held {
            if claimed.get(slot) >= recorded.get(slot) {
                return Err(self.invalid(Invalid::NotHeld(slot)));
            }
            claimed.add(slot);
        }
        let excess: Vec<Slot> = recorded
            .iter()
            .flat_map(|(slot, count)| {
                let extra = count - claimed.get(slot);
                std::iter::repeat_n(slot, extra as usize)
            })
            .collect();
        self.drop_hints(guest);
        let state = self.guest_mut(guest)?;
        state.forget_offers();
        for &slot in &excess {
            state.held_mut().take(slot, 1);
        }
        self.drop_references(&excess);
        Ok(())
    }

    /// What the domain has counted.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How large the domain is.
    pub fn sizes(&self) -> Sizes {
        let guest_bytes: usize = self.guests.values().map(Guest::bytes).sum();
        Sizes {
            guests: self.guests.len() as u32,
            hints: self.index.entries() as u64 - u64::from(self.pool.used() - self.series.copies()),
            pool_pages: self.pool.used(),
            references: self.references.total(),
            index_bytes: self.index.bytes() as u64,
            slot_bytes: (self.pool.bytes() + self.references.bytes() + self.series.bytes()) as u64,
            guest_bytes: guest_bytes as u64,
        }
    }

    /// Bytes of memory that the pool takes, as the kernel counts them.
    ///
    /// # Errors
    /// When fstat(2) fails.
    pub fn pool_bytes(&self) -> io::Result<u64> {
        self.pool.resident_bytes()
    }

    /// Hashes pages of the pool again, from slot `from` on and `slots` slots far, and returns those whose bytes are
    /// not what was published: somebody wrote to the pool, or memory failed.
    ///
    /// # Errors
    /// When the pool cannot be read.
    pub fn audit(&self, from: Slot, slots: u32) -> io::Result<Vec<Slot>> {
        let range = from.get()..from.get().saturating_add(slots).min(self.pool.slots());
        let mut damaged = Vec::new();
        for slot in range.map(Slot::new) {
            let Some(content) = self.pool.content(slot) else {
                continue;
            };
            let page = self.pool.read(slot)?;
            if !content.matches(&self.hasher, &page) {
                damaged.push(slot);
            }
        }
        Ok(damaged)
    }

    /// Tests the invariants above in full. Slow.
    ///
    /// # Errors
    /// Names the first thing found wrong.
    pub fn check(&self) -> Result<(), String> {
        let mut sum: BTreeMap<Slot, u32> = BTreeMap::new();
        for (guest, state) in &self.guests {
            for (slot, count) in state.held().iter() {
                *sum.entry(slot).or_default() += count;
            }
            for (gfn, trace) in state.hints() {
                if !self.index.has_traced(trace, Holder::Hint(*guest, gfn)) {
                    return Err(format!(
                        "{guest:?} {gfn:?} is remembered as a hint, but not in the index"
                    ));
                }
            }
        }
        let references: BTreeMap<Slot, u32> = self.references.iter().collect();
        if references != sum {
            return Err(format!("guests hold {sum:?}, counted are {references:?}"));
        }
        for &slot in references.keys() {
            let content = self.pool.content(slot);
            let holder = content.and_then(|content| self.index.find(content.sketch));
            let named = match holder {
                Some(Holder::Shared(named)) => named == slot || self.pool.content(named) == content,
                _ => false,
            };
            if !named {
                return Err(format!("{slot:?} has references, but the index has {holder:?}"));
            }
        }
        let hints: usize = self.guests.values().map(|state| state.hints().count()).sum();
        let (entries, used) = (self.index.entries(), self.pool.used() as usize);
        let copies = self.series.copies() as usize;
        if entries != hints + used - copies || used != references.len() {
            return Err(format!(
                "{entries} entries, {hints} hints, {used} slots in use, {copies} of them copies, {} referred to",
                references.len()
            ));
        }
        Ok(())
    }

    /// Whether `guest` may get another reference.
    pub(crate) fn may_hold_more(&self, guest: GuestId) -> bool {
        self.guests.get(&guest).is_some_and(Guest::may_hold_more)
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

    pub(crate) fn set_hint(&mut self, guest: GuestId, gfn: Gfn, sketch: Sketch) {
        if let Some(state) = self.guests.get_mut(&guest) {
            state.set_hint(gfn, Trace::of(sketch));
            self.index.set(sketch, Holder::Hint(guest, gfn));
        }
    }

    /// Makes `gfn` a hint no longer, if it is one.
    pub(crate) fn drop_hint(&mut self, guest: GuestId, gfn: Gfn) {
        let state = self.guests.get_mut(&guest);
        if let Some(trace) = state.and_then(|state| state.take_hint(gfn)) {
            self.index.remove_traced(trace, Holder::Hint(guest, gfn));
        }
    }

    fn drop_hints(&mut self, guest: GuestId) {
        let state = self.guests.get(&guest);
        let hints: Vec<Gfn> = state
            .into_iter()
            .flat_map(Guest::hints)
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

    fn free(&mut self, slots: &mut [Slot]) {
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

    pub(crate) fn guest_mut(&mut self, guest: GuestId) -> Result<&mut Guest, PortError> {
        let state = self.guests.get_mut(&guest);
        state.ok_or(PortError::Invalid(Invalid::NotAttached(guest)))
    }

    pub(crate) fn check_batch(&mut self, count: usize, limit: usize) -> Result<(), PortError> {
        if count <= limit {
            return Ok(());
        }
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let limit = limit as u32;
        Err(self.invalid(Invalid::Batch { count, limit }))
    }

    pub(crate) fn check_pages(
        &mut self,
        guest: GuestId,
        mut gfns: impl ExactSizeIterator<Item = Gfn>,
        limit: usize,
    ) -> Result<(), PortError> {
        self.check_batch(gfns.len(), limit)?;
        let state = self.guest_mut(guest)?;
        let outcome = gfns.try_for_each(|gfn| state.check(gfn));
        outcome.map_err(|invalid| self.invalid(invalid))
    }

    fn invalid(&mut self, invalid: Invalid) -> PortError {
        self.counters.invalid_calls += 1;
        PortError::Invalid(invalid)
    }
}
