//! Region and manager in one process: a [`Port`] that calls the [`Domain`] directly.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::attach::{Attachment, LocalGuest};
use crate::domain::Domain;
use crate::guest::drain;
use crate::page::{Gfn, Page, PoolGeneration, Slot};
use crate::port::{Answer, Offer, Port, PortError, Publication, Reconnected, Report, Session};

/// A manager of one domain inside this process. Clones are the same manager.
#[derive(Debug, Clone)]
pub struct LocalManager {
    domain: Arc<Mutex<Option<Domain>>>,
}

impl LocalManager {
    /// A manager of `domain`.
    pub fn new(domain: Domain) -> Self {
        Self {
            domain: Arc::new(Mutex::new(Some(domain))),
        }
    }

    /// Takes a guest of `pages` pages in and returns its port.
    ///
    /// # Errors
    /// When the manager has stopped, or see [`Domain::attach`].
    pub fn attach(&self, pages: u32) -> io::Result<LocalPort> {
        let mut locked = self.lock();
        let domain = locked
            .as_mut()
            .ok_or_else(|| io::Error::other("the local manager has stopped"))?;
        let (guest, session, offers_ready) = enter(domain, pages)?;
        drop(locked);
        Ok(LocalPort {
            manager: self.clone(),
            pages,
            guest: Some(guest),
            session,
            offers_ready,
        })
    }

    /// Runs `action` on the domain, or returns `None` when the manager has stopped.
    pub fn with<T>(&self, action: impl FnOnce(&mut Domain) -> T) -> Option<T> {
        self.lock().as_mut().map(action)
    }

    /// Stops as if the manager's process had died: the domain and its index are gone, mapped pool pages stay.
    pub fn stop(&self) {
        *self.lock() = None;
    }

    /// Comes back as a restarted manager would: with another domain, whose pool is empty.
    pub fn restart(&self, domain: Domain) {
        *self.lock() = Some(domain);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Domain>> {
        self.domain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn enter(domain: &mut Domain, pages: u32) -> io::Result<(LocalGuest, Session, Arc<OwnedFd>)> {
    let guest = domain.attach(pages)?;
    let session = domain.session(guest.attachment()).map_err(io::Error::other)?;
    let offers_ready = domain
        .offers_ready(guest.attachment())
        .map_err(io::Error::other)?;
    Ok((guest, session, offers_ready))
}

/// The port of one guest to a [`LocalManager`].
///
/// Dropping it takes the guest out of the domain if it holds no reference any more, as after its [`Region`](crate::Region)
/// was dropped. References that it still holds may still be mapped: they stay counted, with the guest, until the domain
/// itself is gone. Where the guest's memory has been unmapped, [`retire`](Self::retire) drops all of them.
#[derive(Debug)]
pub struct LocalPort {
    manager: LocalManager,
    pages: u32,
    /// `None` only while it is being dropped.
    guest: Option<LocalGuest>,
    session: Session,
    offers_ready: Arc<OwnedFd>,
}

impl LocalPort {
    /// Ends the guest: drops all its references and hints. Only once no memory maps a page of the pool for it any more.
    pub fn retire(mut self) {
        if let Some(guest) = self.guest.take() {
            self.manager.with(|domain| domain.retire(guest));
        }
    }

    fn call<T>(
        &self,
        action: impl FnOnce(&mut Domain, Attachment) -> Result<T, PortError>,
    ) -> Result<T, PortError> {
        let mut locked = self.manager.lock();
        match (locked.as_mut(), &self.guest) {
            (Some(domain), Some(guest)) if domain.generation == self.session.generation => {
                action(domain, guest.attachment())
            }
            _ => Err(PortError::Gone),
        }
    }
}

impl Drop for LocalPort {
    fn drop(&mut self) {
        if let Some(guest) = self.guest.take() {
            self.manager.with(|domain| domain.leave(guest));
        }
    }
}

impl Port for LocalPort {
    fn session(&self) -> &Session {
        &self.session
    }

    fn report(&mut self, pages: &[Report], answers: &mut Vec<Answer>) -> Result<(), PortError> {
        answers.clear();
        self.call(|domain, guest| domain.report(guest, pages, answers))
    }

    fn publish(
        &mut self,
        pages: &[Report],
        bytes: &[Page],
        results: &mut Vec<Publication>,
    ) -> Result<(), PortError> {
        results.clear();
        self.call(|domain, guest| domain.publish(guest, pages, bytes, results))
    }

    fn offers(&mut self, offers: &mut Vec<Offer>) -> Result<(), PortError> {
        offers.clear();
        drain(&self.offers_ready);
        self.call(|domain, guest| domain.offers(guest, offers))
    }

    fn offers_ready(&self) -> BorrowedFd<'_> {
        self.offers_ready.as_fd()
    }

    fn withdraw(&mut self, pages: &[Gfn]) -> Result<(), PortError> {
        self.call(|domain, guest| domain.withdraw(guest, pages))
    }

    fn claim(
        &mut self,
        generation: PoolGeneration,
        slots: &[Slot],
        answers: &mut Vec<Answer>,
    ) -> Result<(), PortError> {
        answers.clear();
        self.call(|domain, guest| domain.claim(guest, generation, slots, answers))
    }

    fn release(&mut self, generation: PoolGeneration, slots: &[Slot]) -> Result<(), PortError> {
        self.call(|domain, guest| domain.release(guest, generation, slots))
    }

    fn reconnect(&mut self, held: &[Slot]) -> Result<Reconnected, PortError> {
        match self.call(|domain, guest| domain.restate(guest, held)) {
            Ok(()) => return Ok(Reconnected::SamePool),
            Err(PortError::Gone) => {}
            Err(error) => return Err(error),
        }
        let mut locked = self.manager.lock();
        let domain = locked.as_mut().ok_or(PortError::Gone)?;
        let (guest, session, offers_ready) = enter(domain, self.pages).map_err(PortError::Failed)?;
        // The guest before was another domain's, and went with it.
        self.guest = Some(guest);
        self.session = session;
        self.offers_ready = offers_ready;
        Ok(Reconnected::FreshPool)
    }
}
