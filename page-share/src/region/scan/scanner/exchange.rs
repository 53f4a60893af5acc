//! What the scanner says to the manager and hears from it: reports, bytes to publish, offers, references given back, and
//! what happens when the manager goes and another one comes.

use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Candidate, Scanner};
use crate::hash::PageHasher;
use crate::page::{Gfn, PAGE_SIZE, Page, Slot};
use crate::port::{
    Answer, PUBLISH_BATCH, Port, PortError, Publication, REPORT_BATCH, Reconnected, Refusal, Report,
};
use crate::region::engine::{Engine, lock};
use crate::region::guest::Guest;
use crate::region::merge::{MergeRun, Pools};
use crate::region::run::PageRun;
use crate::region::table::{Marks, State};

/// Pages published in one call. Fewer than the port allows: the copies stay in a core's nearest caches while they are
/// hashed and written.
const PORTION: usize = 32;
const _: () = assert!(PORTION <= PUBLISH_BATCH);

impl Scanner {
    /// Joins a sharing domain.
    pub(crate) fn connect(&mut self, engine: &Mutex<Engine>, port: Box<dyn Port>) -> std::io::Result<()> {
        self.enter(engine, port.as_ref())?;
        self.port = Some(port);
        self.gone = false;
        Ok(())
    }

    /// Works with the pool and key of `port`; everything private is to be reported to it.
    fn enter(&mut self, engine: &Mutex<Engine>, port: &dyn Port) -> std::io::Result<()> {
        let mut engine = lock(engine);
        engine.merger().join_pool(port.session())?;
        self.hasher = PageHasher::new(&port.session().key);
        // Named under another key, perhaps: to this manager they are pages that are not what they are called.
        self.scanned.reports.clear();
        self.wanted.clear();
        self.backoff.end();
        let table = self.guest.table();
        for page in table.all().pages() {
            table.clear_marks(page, Marks::REPORTED | Marks::UNSHARABLE);
            if table.state(page) == State::Private {
                table.set_pending(page, true);
            }
        }
        Ok(())
    }

    /// Sends what is to be reported, publishes what is asked for, and collects what can be merged.
    pub(super) fn flush(&mut self, engine: &Mutex<Engine>) {
        let mut reports = std::mem::take(&mut self.scanned.reports);
        self.return_references(engine);
        for batch in reports.chunks(REPORT_BATCH) {
            self.report(engine, batch);
        }
        reports.clear();
        self.scanned.reports = reports;
        let mut wanted = std::mem::take(&mut self.wanted);
        // In page order, so that neighbours come to lie side by side in the pool.
        wanted.sort_unstable_by_key(|report| report.gfn);
        let mut full = false;
        for batch in wanted.chunks(PORTION) {
            match full {
                false => full = self.publish(engine, batch),
                true => self.leave_out(batch),
            }
        }
        wanted.clear();
        self.wanted = wanted;
    }

    pub(super) fn report(&mut self, engine: &Mutex<Engine>, batch: &[Report]) {
        let mut answers = std::mem::take(&mut self.answers);
        if self.call(|port| port.report(batch, &mut answers)).is_some() {
            let mut engine = lock(engine);
            let guest = self.guest.clone();
            guest.counters().pages_reported.add(batch.len() as u64);
            for (report, answer) in batch.iter().zip(&answers) {
                match *answer {
                    Answer::Noted => guest.table().add_marks(report.gfn, Marks::REPORTED),
                    Answer::Shared(slot) => self.accept(engine.merger().pools(), report.gfn, slot),
                    Answer::Publish => self.wanted.push(*report),
                }
            }
        }
        self.answers = answers;
    }

    /// Sends the bytes of `wanted`. Whether the pool had room for none of them.
    fn publish(&mut self, engine: &Mutex<Engine>, wanted: &[Report]) -> bool {
        let mut results = std::mem::take(&mut self.results);
        let mut bytes = std::mem::take(&mut self.bytes);
        let pages = {
            let _engine = lock(engine);
            copy_private(&self.guest, wanted, &mut bytes)
        };
        let sent = self.call(|port| port.publish(&pages, &bytes[..pages.len()], &mut results));
        if sent.is_some() {
            let mut engine = lock(engine);
            let guest = self.guest.clone();
            let table = guest.table();
            guest.counters().pages_published.add(pages.len() as u64);
            for (report, result) in pages.iter().zip(&results) {
                let page = report.gfn;
                match *result {
                    Publication::Granted(slot) => self.accept(engine.merger().pools(), page, slot),
                    Publication::Noted => table.add_marks(page, Marks::REPORTED),
                    Publication::Refused(Refusal::Collision) => table.add_marks(page, Marks::UNSHARABLE),
                    Publication::Refused(Refusal::SketchMismatch) => table.set_pending(page, true),
                    Publication::Refused(Refusal::PoolFull) => self.leave_out(&[*report]),
                }
            }
        }
        let full = |result: &Publication| *result == Publication::Refused(Refusal::PoolFull);
        let full = sent.is_some() && !results.is_empty() && results.iter().all(full);
        self.bytes = bytes;
        self.results = results;
        full
    }

    /// The pool has no room for these pages. They are not pending meanwhile: pages that are cannot be reclaimed.
    fn leave_out(&mut self, pages: &[Report]) {
        for report in pages {
            self.guest.table().add_marks(report.gfn, Marks::LEFT_OUT);
        }
        self.refused.get_or_insert_with(Instant::now);
    }

    pub(super) fn fetch_offers(&mut self, engine: &Mutex<Engine>) {
        while self
            .port
            .as_ref()
            .is_some_and(|port| !self.gone && is_ready(port.as_ref()))
        {
            let mut offers = std::mem::take(&mut self.offers);
            let fetched = self.call(|port| port.offers(&mut offers)).is_some();
            {
                let mut engine = lock(engine);
                for offer in &offers {
                    self.guest.table().clear_marks(offer.gfn, Marks::REPORTED);
                    self.accept(engine.merger().pools(), offer.gfn, offer.slot);
                }
            }
            let empty = offers.is_empty();
            self.offers = offers;
            if empty || !fetched {
                break;
            }
        }
    }

    /// Notes a granted slot for a page. A manager that names nonsense is not followed.
    pub(super) fn accept(&mut self, pools: &Pools, page: Gfn, slot: Slot) {
        match pools.index(slot) {
            Some(index) if page < self.guest.table().all().end() && pools.has(slot) => {
                self.backoff.gain(page);
                self.candidates.push(Candidate { page, index });
            }
            _ => log::warn!("the manager granted {slot:?} for {page:?}, which cannot be; ignored"),
        }
    }

    /// Gives references back whose last mapping is gone, and withdraws hints.
    pub(crate) fn return_references(&mut self, engine: &Mutex<Engine>) {
        let owed = lock(engine).merger().take_owed();
        for batch in owed.withdrawals().chunks(REPORT_BATCH) {
            self.call(|port| port.withdraw(batch));
        }
        if owed.references().is_empty() || self.port.is_none() {
            return;
        }
        let (newest, slots) = {
            let mut engine = lock(engine);
            let pools = engine.merger().pools();
            // References to the pool of a manager that is gone died with it.
            let living = owed.references().iter().filter(|&&index| pools.is_newest(index));
            let slots: Vec<Slot> = living.map(|&index| pools.slot(index).1).collect();
            (pools.newest(), slots)
        };
        let Some(generation) = newest else { return };
        for batch in slots.chunks(REPORT_BATCH) {
            self.call(|port| port.release(generation, batch));
        }
    }

    /// One call to the manager; `None` when there is none or it failed.
    pub(super) fn call<T>(&mut self, call: impl FnOnce(&mut dyn Port) -> Result<T, PortError>) -> Option<T> {
        if self.gone {
            return None;
        }
        match call(self.port.as_mut()?.as_mut()) {
            Ok(answer) => Some(answer),
            Err(error) => {
                log::warn!("the manager did not do what it was asked: {error}");
                self.guest.counters().port_failures.add(1);
                self.gone = matches!(error, PortError::Gone);
                None
            }
        }
    }

    /// Tries to reach a manager again. Everything that was under way is forgotten; what is mapped is named.
    pub(super) fn reconnect_if_gone(&mut self, engine: &Mutex<Engine>) {
        if !self.gone {
            return;
        }
        let Some(mut port) = self.port.take_if(|port| port.may_reconnect()) else {
            return;
        };
        let held = {
            let mut engine = lock(engine);
            // Nothing but what is mapped is held any more, whatever comes of the try: a manager that does not answer in
            // time may still do what it is told.
            engine.merger().forget_references();
            let pools = engine.merger().pools();
            match pools.newest() == Some(port.session().generation) {
                true => held_slots(&self.guest, pools),
                // The manager was reached before, but its pool could not be mapped: it has given nothing yet.
                false => Vec::new(),
            }
        };
        self.forget_grants();
        let reached = port.reconnect(&held);
        if let Ok(reconnected) = reached {
            self.gone = false;
            if let Err(error) = self.enter(engine, port.as_ref()) {
                log::warn!("the manager's new pool cannot be mapped: {error}");
                self.gone = true;
            }
            if reconnected == Reconnected::FreshPool {
                log::info!("another manager has taken over; pages of the old pool move to the new one");
            }
        }
        self.port = Some(port);
    }

    /// Withdraws all hints, and hands everything back that was granted and is not mapped, offers that were not yet
    /// looked at included.
    pub(crate) fn leave(&mut self, engine: &Mutex<Engine>) {
        {
            let mut engine = lock(engine);
            let pages = self.guest.table().all().pages();
            pages.for_each(|page| engine.merger().withdraw(page));
        }
        self.return_references(engine);
        self.fetch_offers(engine);
        {
            let mut engine = lock(engine);
            let candidates = self.candidates.drain(..).map(|candidate| candidate.index);
            engine.merger().return_references(candidates);
            let runs = self.pass.runs.drain(..).flat_map(MergeRun::into_indices);
            engine.merger().return_references(runs);
        }
        self.return_references(engine);
    }

    fn forget_grants(&mut self) {
        self.candidates.clear();
        self.wanted.clear();
        self.pass.runs.clear();
    }
}

/// Copies of the pages still private and unwritten, and their reports.
fn copy_private(guest: &Guest, wanted: &[Report], bytes: &mut Vec<Page>) -> Vec<Report> {
    let mut pages = Vec::with_capacity(wanted.len());
    // Never shortened, or every call would fill it with zeros first.
    bytes.resize(bytes.len().max(wanted.len()), [0; PAGE_SIZE]);
    for report in wanted {
        let page = report.gfn;
        if guest.table().state(page) == State::Private {
            let copy = &mut bytes[pages.len()];
            guest.span(PageRun::one(page)).copy_out(0, copy);
            pages.push(*report);
        }
    }
    pages
}

/// Every reference that mappings of the newest pool hold.
///
/// The fault handler may have a pool page in transit while it lets a write through. Left out, its reference would be
/// dropped under a page that is mapped, so such pages are waited for; the handler itself never waits.
pub(crate) fn held_slots(guest: &Guest, pools: &Pools) -> Vec<Slot> {
    let mut held = Vec::new();
    let table = guest.table();
    let mapped = table
        .all()
        .pages()
        .filter(|&page| guest.settled_state(page).is_pool());
    for index in mapped.map(|page| table.last_location(page)) {
        if pools.is_newest(index) {
            held.push(pools.slot(index).1);
        }
    }
    held
}

fn is_ready(port: &dyn Port) -> bool {
    let ready = port.offers_ready();
    let mut fds = [PollFd::from_borrowed_fd(ready.as_fd(), PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut fds, Some(&now)), Ok(count) if count > 0)
}

#[cfg(test)]
mod tests;
