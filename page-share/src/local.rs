//! Region and manager in one process: a [`Port`] that calls the [`Domain`] directly.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
        let guest = domain.attach(pages)?;
        let session = domain.session(guest).map_err(io::Error::other)?;
        let offers_ready = domain.offers_ready(guest).map_err(io::Error::other)?;
        drop(locked);
        Ok(LocalPort {
            manager: self.clone(),
            pages,
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

/// The port of one guest to a [`LocalManager`].
///
/// Dropping it releases nothing: tell the domain with [`Domain::detach`] once the guest's memory is gone.
#[derive(Debug)]
pub struct LocalPort {
    manager: LocalManager,
    pages: u32,
    session: Session,
    offers_ready: Arc<OwnedFd>,
}

impl LocalPort {
    fn call<T>(&self, action: impl FnOnce(&mut Domain) -> Result<T, PortError>) -> Result<T, PortError> {
        let mut locked = self.manager.lock();
        match locked.as_mut() {
            Some(domain) if domain.generation == self.session.generation => action(domain),
            _ => Err(PortError::Gone),
        }
    }
}

impl Port for LocalPort {
    fn session(&self) -> &Session {
        &self.session
    }

    fn report(&mut self, pages: &[Report], answers: &mut Vec<Answer>) -> Result<(), PortError> {
        answers.clear();
        let guest = self.session.guest;
        self.call(|domain| domain.report(guest, pages, answers))
    }

    fn publish(
        &mut self,
        pages: &[Report],
        bytes: &[Page],
        results: &mut Vec<Publication>,
    ) -> Result<(), PortError> {
        results.clear();
        let guest = self.session.guest;
        self.call(|domain| domain.publish(guest, pages, bytes, results))
    }

    fn offers(&mut self, offers: &mut Vec<Offer>) -> Result<(), PortError> {
        offers.clear();
        drain(&self.offers_ready);
        let guest = self.session.guest;
        self.call(|domain| domain.offers(guest, offers))
    }

    fn offers_ready(&self) -> BorrowedFd<'_> {
        self.offers_ready.as_fd()
    }

    fn withdraw(&mut self, pages: &[Gfn]) -> Result<(), PortError> {
        let guest = self.session.guest;
        self.call(|domain| domain.withdraw(guest, pages))
    }

    fn claim(
        &mut self,
        generation: PoolGeneration,
        slots: &[Slot],
        answers: &mut Vec<Answer>,
    ) -> Result<(), PortError> {
        answers.clear();
        let guest = self.session.guest;
        self.call(|domain| domain.claim(guest, generation, slots, answers))
    }

    fn release(&mut self, generation: PoolGeneration, slots: &[Slot]) -> Result<(), PortError> {
        let guest = self.session.guest;
        self.call(|domain| domain.release(guest, generation, slots))
    }

    fn reconnect(&mut self, held: &[Slot]) -> Result<Reconnected, PortError> {
        let mut locked = self.manager.lock();
        let domain = locked.as_mut().ok_or(PortError::Gone)?;
        if domain.generation == self.session.generation {
            domain.restate(self.session.guest, held)?;
            return Ok(Reconnected::SamePool);
        }
        let guest = domain.attach(self.pages).map_err(PortError::Failed)?;
        self.session = domain.session(guest).map_err(PortError::Invalid)?;
        self.offers_ready = domain.offers_ready(guest).map_err(PortError::Invalid)?;
        Ok(Reconnected::FreshPool)
    }
}
