//! A manager whose answers get lost, again and again, while guests write, growth is gated and pages are given up: no
//! pool page may go while it is mapped, and no reference may stay when it is not.

mod contents;

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use contents::page;
use page_share::port::{Answer, Offer, Port, PortError, Publication, Reconnected, Report, Session};
use page_share::{
    AnonymousMemory, Domain, Gfn, LocalManager, LocalPort, Options, Page, PageRun, PoolGeneration, Region,
    Release, Slot,
};

const PAGES: u32 = 512;
const WRITERS: u32 = 2;
const CONTENTS: u64 = 200;

/// Numbers that look random (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % end
    }
}

/// A port that does what it is asked and now and then loses the answer, and with it the connection.
struct Lossy {
    inner: LocalPort,
    dice: Dice,
    lost: bool,
    losses: &'static AtomicU64,
    calm: &'static AtomicBool,
}

impl Lossy {
    fn call<T>(&mut self, call: impl FnOnce(&mut LocalPort) -> Result<T, PortError>) -> Result<T, PortError> {
        if self.lost {
            return Err(PortError::Gone);
        }
        let answer = call(&mut self.inner);
        if self.dice.roll(10) == 0 && !self.calm.load(Ordering::Relaxed) {
            self.lost = true;
            self.losses.fetch_add(1, Ordering::Relaxed);
            return Err(PortError::Gone);
        }
        answer
    }
}

impl Port for Lossy {
    fn session(&self) -> &Session {
        self.inner.session()
    }

    fn report(&mut self, pages: &[Report], answers: &mut Vec<Answer>) -> Result<(), PortError> {
        let done = self.call(|port| port.report(pages, answers));
        done.inspect_err(|_| answers.clear())
    }

    fn publish(
        &mut self,
        pages: &[Report],
        bytes: &[Page],
        results: &mut Vec<Publication>,
    ) -> Result<(), PortError> {
        let done = self.call(|port| port.publish(pages, bytes, results));
        done.inspect_err(|_| results.clear())
    }

    fn offers(&mut self, offers: &mut Vec<Offer>) -> Result<(), PortError> {
        let done = self.call(|port| port.offers(offers));
        done.inspect_err(|_| offers.clear())
    }

    fn offers_ready(&self) -> BorrowedFd<'_> {
        self.inner.offers_ready()
    }

    fn withdraw(&mut self, pages: &[Gfn]) -> Result<(), PortError> {
        self.call(|port| port.withdraw(pages))
    }

    fn claim(
        &mut self,
        generation: PoolGeneration,
        slots: &[Slot],
        answers: &mut Vec<Answer>,
    ) -> Result<(), PortError> {
        let done = self.call(|port| port.claim(generation, slots, answers));
        done.inspect_err(|_| answers.clear())
    }

    fn release(&mut self, generation: PoolGeneration, slots: &[Slot]) -> Result<(), PortError> {
        self.call(|port| port.release(generation, slots))
    }

    fn reconnect(&mut self, held: &[Slot]) -> Result<Reconnected, PortError> {
        let reconnected = self.inner.reconnect(held)?;
        self.lost = false;
        Ok(reconnected)
    }
}

/// Checks and rewrites the pages of one writer until told to stop; returns the number of writes.
fn write(memory: &AnonymousMemory, writer: u32, stop: &AtomicBool) -> u64 {
    let mut dice = Dice(0x1234_5678 + u64::from(writer));
    let mine: Vec<u32> = (0..PAGES / 2).filter(|at| at % WRITERS == writer).collect();
    let mut contents = vec![0; PAGES as usize];
    let mut writes = 0;
    for &at in &mine {
        memory.write_page(at, &page(u64::from(at)));
        contents[at as usize] = u64::from(at);
    }
    while !stop.load(Ordering::Relaxed) {
        let at = mine[dice.roll(mine.len() as u64) as usize];
        let seen = memory.read_page(at);
        assert!(
            seen == page(contents[at as usize]),
            "page {at} should hold {}",
            contents[at as usize]
        );
        if dice.roll(4) == 0 {
            contents[at as usize] = dice.roll(CONTENTS);
            memory.write_page(at, &page(contents[at as usize]));
            writes += 1;
        }
        if dice.roll(64) == 0 {
            std::thread::sleep(Duration::from_micros(300));
        }
    }
    for &at in &mine {
        assert!(
            memory.read_page(at) == page(contents[at as usize]),
            "page {at} in the end"
        );
    }
    writes
}

/// Scans, gives pages up and gates growth.
fn manage(memory: &AnonymousMemory, region: &Region, passes: u32) {
    let mut dice = Dice(99);
    for pass in 0..passes {
        region.scan_pass();
        // The upper half has no writer: it is filled, merged and given up.
        let first = PAGES / 2 + dice.roll(u64::from(PAGES / 2)) as u32;
        let run = PageRun::new(Gfn::new(first), (PAGES - first).min(20));
        match pass % 4 {
            0 => drop(region.release(run, Release::Balloon)),
            1 => region.deflate(run),
            2 => (first..first + run.count)
                .for_each(|at| memory.write_page(at, &page(u64::from(at) % CONTENTS))),
            _ => {
                region.close_gate();
                for _ in 0..20 {
                    region.add_credit(2);
                    std::thread::sleep(Duration::from_micros(200));
                }
                region.scan_pass();
                region.open_gate();
            }
        }
    }
}

#[test]
fn lost_answers_cost_no_page_and_no_reference() {
    static LOSSES: AtomicU64 = AtomicU64::new(0);
    static CALM: AtomicBool = AtomicBool::new(false);
    let manager = LocalManager::new(Domain::new(1 << 12).unwrap());
    let guests: Vec<_> = (1..3)
        .map(|seed| {
            let memory = AnonymousMemory::new(PAGES).unwrap();
            let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
            let inner = manager.attach(region.page_limit()).unwrap();
            let port = Lossy {
                inner,
                dice: Dice(seed * 7777),
                lost: false,
                losses: &LOSSES,
                calm: &CALM,
            };
            region.connect(Box::new(port)).unwrap();
            (memory, region)
        })
        .collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = guests
            .iter()
            .flat_map(|(memory, _)| (0..WRITERS).map(move |writer| (memory, writer)))
            .map(|(memory, writer)| {
                scope.spawn({
                    let stop = &stop;
                    move || write(memory, writer, stop)
                })
            })
            .collect();
        let managers: Vec<_> = guests
            .iter()
            .map(|(memory, region)| scope.spawn(move || manage(memory, region, 300)))
            .collect();
        managers.into_iter().for_each(|manager| manager.join().unwrap());
        stop.store(true, Ordering::Relaxed);
        assert!(
            writers
                .into_iter()
                .map(|writer| writer.join().unwrap())
                .sum::<u64>()
                > 1000
        );
    });
    let merged: u64 = guests.iter().map(|(_, region)| region.stats().pages_merged).sum();
    assert!(
        merged > 100 && LOSSES.load(Ordering::Relaxed) > 20,
        "{merged} merges, {LOSSES:?} losses"
    );
    CALM.store(true, Ordering::Relaxed);
    guests.iter().for_each(|(_, region)| region.scan_pass());
    manager.with(|domain| domain.check().unwrap());
    drop(guests);
    let sizes = manager.with(|domain| domain.sizes()).unwrap();
    assert_eq!((sizes.references, sizes.pool_pages, sizes.hints), (0, 0, 0));
    manager.with(|domain| domain.check().unwrap());
}
