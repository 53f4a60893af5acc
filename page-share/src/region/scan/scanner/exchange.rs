//! What the scanner says to the manager and hears from it: reports, bytes to publish, offers, references given back, and
//! what happens when the manager goes and another one comes.

use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Candidate, Scanner, is_mapped, lock};
use crate::hash::PageHasher;
use crate::page::{Gfn, PAGE_SIZE, Page, Slot};
use crate::port::{
    Answer, PUBLISH_BATCH, Port, PortError, Publication, REPORT_BATCH, Reconnected, Refusal, Report,
};
use crate::region::engine::Engine;
use crate::region::merge::merge_run::Stretch;
use crate::region::run::PageRun;
use crate::region::table::state::{State, mark};

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
        engine.pools.join(port.session())?;
        engine.broken.clear();
        engine.withdrawals.clear();
        self.hasher = PageHasher::new(&port.session().key);
        // Named under another key, perhaps: to this manager they are pages that are not what they are called.
        self.scanned.reports.clear();
        self.wanted.clear();
        self.rests.end();
        let table = &engine.guest.table;
        for page in 0..table.pages() {
            table.clear_marks(page, mark::REPORTED | mark::UNSHARABLE);
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
                true => self.leave_out(&lock(engine), batch),
            }
        }
        wanted.clear();
        self.wanted = wanted;
    }

    pub(in crate::region) fn report(&mut self, engine: &Mutex<Engine>, batch: &[Report]) {
        let mut answers = std::mem::take(&mut self.answers);
        if self
            .call(engine, |port| port.report(batch, &mut answers))
            .is_some()
        {
            let engine = lock(engine);
            engine.guest.counters.pages_reported.add(batch.len() as u64);
            for (report, answer) in batch.iter().zip(&answers) {
                match *answer {
                    Answer::Noted => engine.guest.table.add_marks(report.gfn.get(), mark::REPORTED),
                    Answer::Shared(slot) => self.accept(&engine, report.gfn, slot),
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
        let pages = copy_private(&lock(engine), wanted, &mut bytes);
        let sent = self.call(engine, |port| {
            port.publish(&pages, &bytes[..pages.len()], &mut results)
        });
        if sent.is_some() {
            let engine = lock(engine);
            let table = &engine.guest.table;
            engine.guest.counters.pages_published.add(pages.len() as u64);
            for (report, result) in pages.iter().zip(&results) {
                let page = report.gfn.get();
                match *result {
                    Publication::Granted(slot) => self.accept(&engine, report.gfn, slot),
                    Publication::Noted => table.add_marks(page, mark::REPORTED),
                    Publication::Refused(Refusal::Collision) => table.add_marks(page, mark::UNSHARABLE),
                    Publication::Refused(Refusal::SketchMismatch) => table.set_pending(page, true),
                    Publication::Refused(Refusal::PoolFull) => self.leave_out(&engine, &[*report]),
                }
            }
        }
        let full = |result: &Publication| *result == Publication::Refused(Refusal::PoolFull);
        let full = sent.is_some() && !results.is_empty() && results.iter().all(full);
        self.bytes = bytes;
        self.results = results;
        full
    }

    /// The pool has no room for these pages. They are not pending meanwhile: pages that are cannot be squeezed.
    fn leave_out(&mut self, engine: &Engine, pages: &[Report]) {
        for report in pages {
            engine.guest.table.add_marks(report.gfn.get(), mark::LEFT_OUT);
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
            let fetched = self.call(engine, |port| port.offers(&mut offers)).is_some();
            {
                let engine = lock(engine);
                for offer in &offers {
                    engine.guest.table.clear_marks(offer.gfn.get(), mark::REPORTED);
                    self.accept(&engine, offer.gfn, offer.slot);
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
    pub(in crate::region) fn accept(&mut self, engine: &Engine, gfn: Gfn, slot: Slot) {
        match engine.pools.place(slot) {
            Some(place) if gfn.get() < engine.guest.table.pages() && engine.pools.has(slot) => {
                self.rests.gain(gfn.get());
                self.candidates.push(Candidate {
                    page: gfn.get(),
                    place,
                });
            }
            _ => log::warn!("the manager granted {slot:?} for {gfn:?}, which cannot be; ignored"),
        }
    }

    /// Gives references back whose last mapping is gone, and withdraws hints.
    pub(crate) fn return_references(&mut self, engine: &Mutex<Engine>) {
        let (returns, withdrawals) = {
            let mut engine = lock(engine);
            (
                std::mem::take(&mut engine.returns),
                std::mem::take(&mut engine.withdrawals),
            )
        };
        for batch in withdrawals.chunks(REPORT_BATCH) {
            self.call(engine, |port| port.withdraw(batch));
        }
        if returns.is_empty() || self.port.is_none() {
            return;
        }
        let (generation, slots) = {
            let engine = lock(engine);
            // References to the pool of a manager that is gone died with it.
            let slots = returns
                .iter()
                .filter(|&&place| engine.pools.is_newest(place))
                .map(|&place| engine.pools.slot(place));
            let slots: Vec<_> = slots.collect();
            let Some(&(generation, _)) = slots.first() else {
                return;
            };
            (
                generation,
                slots.into_iter().map(|(_, slot)| slot).collect::<Vec<_>>(),
            )
        };
        for batch in slots.chunks(REPORT_BATCH) {
            self.call(engine, |port| port.release(generation, batch));
        }
    }

    /// One call to the manager; `None` when there is none or it failed.
    pub(in crate::region) fn call<T>(
        &mut self,
        engine: &Mutex<Engine>,
        call: impl FnOnce(&mut dyn Port) -> Result<T, PortError>,
    ) -> Option<T> {
        if self.gone {
            return None;
        }
        match call(self.port.as_mut()?.as_mut()) {
            Ok(answer) => Some(answer),
            Err(error) => {
                log::warn!("the manager did not do what it was asked: {error}");
                lock(engine).guest.counters.port_failures.add(1);
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
            engine.returns.clear();
            match engine.pools.newest() == Some(port.session().generation) {
                true => held_slots(&engine),
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
            (0..engine.guest.table.pages()).for_each(|page| engine.forget_hint(page));
        }
        self.return_references(engine);
        self.fetch_offers(engine);
        {
            let mut engine = lock(engine);
            let candidates = self.candidates.drain(..);
            engine.returns.extend(candidates.map(|candidate| candidate.place));
            let stretches = self.pass.stretches.drain(..);
            engine.returns.extend(stretches.flat_map(Stretch::into_places));
        }
        self.return_references(engine);
    }

    fn forget_grants(&mut self) {
        self.candidates.clear();
        self.wanted.clear();
        self.pass.stretches.clear();
    }
}

/// Copies of the pages still private and unwritten, and their reports.
fn copy_private(engine: &Engine, wanted: &[Report], bytes: &mut Vec<Page>) -> Vec<Report> {
    let guest = &engine.guest;
    let mut pages = Vec::with_capacity(wanted.len());
    // Never shortened, or every call would fill it with zeros first.
    bytes.resize(bytes.len().max(wanted.len()), [0; PAGE_SIZE]);
    for report in wanted {
        let page = report.gfn.get();
        if guest.table.state(page) == State::Private {
            let copy = &mut bytes[pages.len()];
            guest.span(PageRun::of(page..page + 1)).copy_out(0, copy);
            pages.push(*report);
        }
    }
    pages
}

/// Every reference that mappings of the newest pool hold.
///
/// The fault handler may have a pool page in transit while it lets a write through. Left out, its reference would be
/// dropped under a page that is mapped, so such pages are waited for; the handler itself never waits.
pub(crate) fn held_slots(engine: &Engine) -> Vec<Slot> {
    let table = &engine.guest.table;
    let mut held = Vec::new();
    for page in 0..table.pages() {
        while table.is_held_for_a_moment(page) {
            std::thread::yield_now();
        }
        let place = table.detail(page);
        if is_mapped(engine, page) && engine.pools.is_newest(place) {
            held.push(engine.pools.slot(place).1);
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
