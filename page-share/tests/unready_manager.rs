//! A manager that does not answer for a while, or whose pool cannot be mapped at first.

mod contents;

use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use contents::page;
use page_share::port::{Answer, Offer, Port, PortError, Publication, Reconnected, Report, Session};
use page_share::{
    AnonymousMemory, Domain, Gfn, LocalManager, LocalPort, Options, Page, PageRun, PoolGeneration, Region,
    Slot,
};

const PAGES: u32 = 512;

/// A port to a manager whose pool is too large to be mapped at first, and that may keep a report waiting.
struct Unready {
    inner: LocalPort,
    session: Session,
    /// How often a new pool cannot be mapped.
    too_large: u32,
    /// Told when a report has come; answered when that may be answered.
    keeps: Option<(Sender<()>, Receiver<()>)>,
}

impl Unready {
    fn new(manager: &LocalManager) -> Self {
        let inner = manager.attach(PAGES).unwrap();
        let session = inner.session().clone();
        Self {
            inner,
            session,
            too_large: 0,
            keeps: None,
        }
    }
}

impl Port for Unready {
    fn session(&self) -> &Session {
        &self.session
    }

    fn report(&mut self, pages: &[Report], answers: &mut Vec<Answer>) -> Result<(), PortError> {
        if let Some((came, answered)) = self.keeps.take() {
            came.send(()).unwrap();
            answered.recv().unwrap();
        }
        self.inner.report(pages, answers)
    }

    fn publish(
        &mut self,
        pages: &[Report],
        bytes: &[Page],
        results: &mut Vec<Publication>,
    ) -> Result<(), PortError> {
        self.inner.publish(pages, bytes, results)
    }

    fn offers(&mut self, offers: &mut Vec<Offer>) -> Result<(), PortError> {
        self.inner.offers(offers)
    }

    fn offers_ready(&self) -> BorrowedFd<'_> {
        self.inner.offers_ready()
    }

    fn withdraw(&mut self, pages: &[Gfn]) -> Result<(), PortError> {
        self.inner.withdraw(pages)
    }

    fn claim(
        &mut self,
        generation: PoolGeneration,
        slots: &[Slot],
        answers: &mut Vec<Answer>,
    ) -> Result<(), PortError> {
        self.inner.claim(generation, slots, answers)
    }

    fn release(&mut self, generation: PoolGeneration, slots: &[Slot]) -> Result<(), PortError> {
        self.inner.release(generation, slots)
    }

    fn reconnect(&mut self, held: &[Slot]) -> Result<Reconnected, PortError> {
        let reconnected = self.inner.reconnect(held)?;
        self.session = self.inner.session().clone();
        if self.too_large > 0 {
            self.too_large -= 1;
            self.session.slot_limit = u32::MAX;
        }
        Ok(reconnected)
    }
}

/// A guest each of whose pages has a twin in it.
fn guest(port: Unready) -> (AnonymousMemory, Region) {
    let memory = AnonymousMemory::new(PAGES).unwrap();
    (0..PAGES).for_each(|at| memory.write_page(at, &page(u64::from(at / 2))));
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
    region.connect(Box::new(port)).unwrap();
    (memory, region)
}

#[test]
fn a_guest_that_cannot_map_the_new_pool_at_once_holds_nothing_of_it() {
    let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
    let mut port = Unready::new(&manager);
    port.too_large = 2;
    let (memory, region) = guest(port);
    (0..3).for_each(|_| region.scan_pass());
    assert_eq!(region.stats().shared, u64::from(PAGES));
    manager.stop();
    memory.write_page(0, &page(1000));
    (0..3).for_each(|_| region.scan_pass());
    manager.restart(Domain::new(1 << 10).unwrap());
    (0..20).for_each(|_| region.scan_pass());
    let counters = manager.with(|domain| domain.counters()).unwrap();
    assert_eq!(counters.invalid_calls, 0, "{counters:?}");
    assert_eq!(
        region.stats().shared,
        u64::from(PAGES) - 2,
        "{:?}",
        region.stats()
    );
    assert_eq!(region.pools().len(), 1);
    manager.with(|domain| domain.check().unwrap());
}

#[test]
fn while_the_manager_keeps_the_scanner_waiting_no_other_thread_waits() {
    let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
    let mut port = Unready::new(&manager);
    let ((came, comes), (answer, answered)) = (channel(), channel());
    port.keeps = Some((came, answered));
    let (_memory, region) = guest(port);
    let (done, waits) = channel();
    std::thread::scope(|scope| {
        let region = &region;
        scope.spawn(move || (0..3).for_each(|_| region.scan_pass()));
        comes.recv().unwrap();
        scope.spawn(move || {
            region.start_sample(16);
            region.finish_sample();
            region.split_blocks(1);
            let all = PageRun::new(Gfn::new(0), PAGES);
            for runs in [region.cold_pages(8), region.victims(8), vec![all]] {
                runs.into_iter().for_each(|run| {
                    region.compress(run);
                });
            }
            region.stats();
            done.send(()).unwrap();
        });
        let outcome = waits.recv_timeout(Duration::from_secs(20));
        answer.send(()).unwrap();
        assert_eq!(outcome, Ok(()), "waited for the manager");
    });
}
