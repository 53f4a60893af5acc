//! How guests come, come back and go: who may speak for a guest, and what ends it.
//!
//! A guest is of another process ([`Domain::admit`]) or of this one ([`Domain::attach`]). Each connection of a process
//! gets an [`Attachment`] of its own, with an epoch that is never used again: a newer connection, or the guest's end,
//! takes the older one's authority away at once, whatever is still on its way there.
//!
//! References go in three ways only: the guest gives them back ([`Domain::release`], [`Domain::restate`]), its process
//! is proven dead ([`Domain::detach`]), or a guest of this process is consumed ([`Domain::retire`]).

use std::io;

use crate::counts::Counts;
use crate::death::{Dead, GuestProcess};
use crate::domain::Domain;
use crate::guest::AttachedGuest;
use crate::page::{Epoch, GuestId, Slot};
use crate::port::{Invalid, PortError};

/// The right to speak for a guest: its number, and the epoch in which it was given.
///
/// Every request to a [`Domain`] carries one. Another epoch than the guest's present one is refused with
/// [`PortError::Superseded`], and nothing is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attachment {
    guest: GuestId,
    epoch: Epoch,
}

impl Attachment {
    /// What a caller claims to be: good for nothing unless the domain gave it out.
    pub const fn new(guest: GuestId, epoch: Epoch) -> Self {
        Self { guest, epoch }
    }

    /// The guest's number.
    pub const fn guest(self) -> GuestId {
        self.guest
    }

    /// Since when.
    pub const fn epoch(self) -> Epoch {
        self.epoch
    }
}

/// A guest whose memory is this process's own. There is one for each guest and it cannot be copied: who gives it away
/// ends the guest.
#[derive(Debug)]
pub struct LocalGuest(Attachment);

impl LocalGuest {
    /// The right to speak for it.
    pub fn attachment(&self) -> Attachment {
        self.0
    }
}

impl Domain {
    /// Takes in a guest of `pages` pages that lives in this process.
    ///
    /// # Errors
    /// When the domain has 65,536 guests or the kernel refuses a pipe.
    pub fn attach(&mut self, pages: u32) -> io::Result<LocalGuest> {
        self.enter(pages, None).map(LocalGuest)
    }

    /// Takes in the guest of `pages` pages that `process` runs, or takes it back: then its references and waiting offers
    /// are what they were, its hints are forgotten, and whatever spoke for it before is no longer heard.
    ///
    /// # Errors
    /// When the process is dead, its guest had another size before, the domain has 65,536 guests, or the kernel refuses
    /// a pipe. Nothing has changed then.
    pub fn admit(&mut self, pages: u32, process: &GuestProcess) -> io::Result<Attachment> {
        // A death that is seen after this is told to `detach` after this, which then finds the guest.
        if process.dead().is_some() {
            return Err(io::Error::other("the guest's process is dead"));
        }
        let Some(guest) = self.guest_of(|owner| owner.is_same(process)) else {
            return self.enter(pages, Some(process.clone()));
        };
        let before = self.guests.get(&guest).map_or(0, AttachedGuest::pages);
        if before != pages {
            let message = format!("the guest had {before} pages before, now {pages}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let epoch = self.next_epoch();
        self.drop_hints(guest);
        if let Some(state) = self.guests.get_mut(&guest) {
            state.renew(epoch);
        }
        Ok(Attachment { guest, epoch })
    }

    fn enter(&mut self, pages: u32, process: Option<GuestProcess>) -> io::Result<Attachment> {
        // Onwards from the last one, so that logs do not call two guests by one number soon.
        let (before, after) = (0..self.next_guest, self.next_guest..=u16::MAX);
        let guest = after
            .chain(before)
            .map(GuestId::new)
            .find(|id| !self.guests.contains_key(id))
            .ok_or_else(|| io::Error::other("the sharing domain has 65536 guests already"))?;
        let epoch = self.next_epoch();
        self.guests
            .insert(guest, AttachedGuest::new(pages, epoch, process)?);
        self.next_guest = guest.get().wrapping_add(1);
        Ok(Attachment { guest, epoch })
    }

    /// Epochs begin at the pool's generation, which is random: no other domain's are the same.
    fn next_epoch(&mut self) -> Epoch {
        let epoch = self.epoch;
        self.epoch = Epoch::new(epoch.get().wrapping_add(1));
        epoch
    }

    /// Drops everything of the guest whose process is `dead`. Returns whether there was one.
    pub fn detach(&mut self, dead: &Dead) -> bool {
        let guest = self.guest_of(|owner| dead.is_of(owner));
        guest.inspect(|&guest| self.forget(guest)).is_some()
    }

    /// Drops everything of a guest of this process. Only once nothing maps a page of the pool for it: its memory must
    /// have been brought home, or unmapped.
    pub fn retire(&mut self, guest: LocalGuest) {
        if let Ok(guest) = self.authorize(guest.0) {
            self.forget(guest);
        }
    }

    /// A guest of this process will say no more. Offers that it never saw go, with its hints. If it holds nothing else,
    /// it is gone; what it may still map stays counted with the domain.
    pub fn leave(&mut self, guest: LocalGuest) {
        let Ok(guest) = self.authorize(guest.0) else {
            return;
        };
        self.drop_hints(guest);
        let unseen = self.guests.get_mut(&guest).map(AttachedGuest::drop_offers);
        self.drop_references(&unseen.unwrap_or_default());
        let epoch = self.next_epoch();
        match self.guests.get_mut(&guest) {
            Some(state) if state.held().total() > 0 => state.renew(epoch),
            _ => self.forget(guest),
        }
    }

    /// Makes `held` the whole of what the guest refers to: one entry for each reference. For a process that has lost a
    /// connection with answers on the way, and says on a new one what it really has. Hints and waiting offers are
    /// forgotten.
    ///
    /// # Errors
    /// [`PortError::Superseded`], and [`PortError::Invalid`] when a reference is named that the guest never had; nothing
    /// was done then.
    pub fn restate(&mut self, from: Attachment, held: &[Slot]) -> Result<(), PortError> {
        let guest = self.authorize(from)?;
        let recorded = self.guest_mut(from)?.held();
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
        let state = self.guest_mut(from)?;
        state.forget_offers();
        for &slot in &excess {
            state.held_mut().take(slot, 1);
        }
        self.drop_references(&excess);
        Ok(())
    }

    /// The guest that `from` may speak for.
    ///
    /// # Errors
    /// [`PortError::Superseded`].
    pub(crate) fn authorize(&self, from: Attachment) -> Result<GuestId, PortError> {
        let state = self.guests.get(&from.guest);
        match state.is_some_and(|state| state.epoch() == from.epoch) {
            true => Ok(from.guest),
            false => Err(PortError::Superseded(from.guest)),
        }
    }

    fn guest_of(&self, wanted: impl Fn(&GuestProcess) -> bool) -> Option<GuestId> {
        let mut guests = self.guests.iter();
        guests
            .find(|(_, state)| state.process().is_some_and(&wanted))
            .map(|(guest, _)| *guest)
    }

    /// Drops everything of a guest that has ended.
    fn forget(&mut self, guest: GuestId) {
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
}
