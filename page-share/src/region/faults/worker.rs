//! The fault handler's work: it reads events, and keeps what cannot be resolved yet.
//!
//! It takes no lock that a user of guest memory holds while touching it, never touches guest memory itself, never
//! talks to the manager and never moves a mapping. Reads of the swap file go to the swap thread. A filling call that
//! answers "try again" is tried again only after more events were read: the event of a moving mapping may be what
//! stands in its way, and reading it is this thread's job.

mod resolve;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::page::{Gfn, PAGE_SIZE, Page};
use crate::region::error::fatal;
use crate::region::faults::swap_thread::SwapIn;
use crate::region::guest::Guest;
use crate::region::kernel::{Event, Userfault, thread_cpu};
use crate::region::reclaim::{ColdStore, NEIGHBOURS, SampleArea};

/// How long the handler looks for the next fault before it sleeps; longer would cost bystanders their cores.
const SPIN: Duration = Duration::from_micros(20);

/// Faults that can wait at once without an allocation.
const WAITING_FAULTS: usize = 4096;

/// Groups of neighbours that can wait to be decompressed; more are left where they are.
const WAITING_GROUPS: usize = 64;

/// A handler that dies leaves its guest waiting for ever, and closing its descriptor would show the guest zeros.
struct AbortOnExit<'a>(&'a Guest);

impl Drop for AbortOnExit<'_> {
    fn drop(&mut self) {
        if !self.0.is_closing() {
            fatal(format_args!("the fault handler died"));
        }
    }
}

/// A thread waits for this page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fault {
    page: Gfn,
    /// It wants to write through a protection, rather than to find the page missing.
    protected: bool,
}

/// Whether a fault needs more from us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Resolved, or another thread's.
    Done,
    /// Again after the next events.
    Later,
    /// Again when there is credit.
    Gated,
}

/// A guest, and where its pages come back from.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) guest: Arc<Guest>,
    pub(crate) cold: Arc<ColdStore>,
    pub(crate) area: Arc<SampleArea>,
}

/// What the handler's thread works with.
pub(super) struct Worker {
    sources: Sources,
    bell: Arc<OwnedFd>,
    swap_ins: SyncSender<SwapIn>,
    /// To resolve now.
    faults: Vec<Fault>,
    /// To resolve after the next events.
    later: Vec<Fault>,
    /// To resolve when there is credit.
    gated: Vec<Fault>,
    /// Pages whose neighbours are to be decompressed when no access waits.
    nearby: Vec<Gfn>,
    buffer: Box<[Page]>,
}

impl Worker {
    /// With room for everything that it will ever hold: it never allocates.
    pub(super) fn new(sources: Sources, bell: Arc<OwnedFd>, swap_ins: SyncSender<SwapIn>) -> Self {
        Self {
            sources,
            bell,
            swap_ins,
            faults: Vec::with_capacity(WAITING_FAULTS),
            later: Vec::with_capacity(WAITING_FAULTS),
            gated: Vec::with_capacity(WAITING_FAULTS),
            nearby: Vec::with_capacity(WAITING_GROUPS),
            buffer: vec![[0; PAGE_SIZE]; NEIGHBOURS as usize].into_boxed_slice(),
        }
    }

    pub(super) fn run(&mut self) {
        let guest = self.sources.guest.clone();
        let _guard = AbortOnExit(&guest);
        let (mut cpu, mut busy_until) = (thread_cpu(), Instant::now());
        while !guest.is_closing() {
            if self.serve(&guest) {
                busy_until = Instant::now() + SPIN;
            } else if Instant::now() < busy_until {
                std::hint::spin_loop();
            } else {
                let now = thread_cpu();
                guest.counters().handler_cpu_ns.add((now - cpu).as_nanos() as u64);
                cpu = now;
                self.sleep(&guest);
            }
        }
    }

    /// Reads all events, resolves what waits, and then at most one group of neighbours. Whether there was anything.
    fn serve(&mut self, guest: &Guest) -> bool {
        let [missing, protected] = guest.event_sources();
        let events = self.collect(guest, missing) + self.collect(guest, protected);
        // Until the mover goes on from the event that was just read, every try would fail.
        if !guest.is_moving() {
            self.faults.append(&mut self.later);
        }
        if !self.gated.is_empty() && guest.gate().would_admit() {
            self.faults.append(&mut self.gated);
        }
        while let Some(fault) = self.faults.pop() {
            match self.resolve(guest, fault) {
                Outcome::Done => {}
                Outcome::Later => {
                    guest.counters().faults_retried.add(1);
                    self.later.push(fault);
                }
                // An access that was woken meanwhile, and found nothing changed, has asked before.
                Outcome::Gated if self.gated.contains(&fault) => {}
                Outcome::Gated => self.gated.push(fault),
            }
        }
        guest.set_disturbed_faults(self.later.len());
        guest.gate().set_waiting(self.gated.len());
        let nearby = self.nearby.pop();
        if let Some(page) = nearby {
            self.decompress_neighbours(guest, page);
        }
        events > 0 || nearby.is_some()
    }

    /// Reads all events of one descriptor; remap events need nothing but to be read.
    fn collect(&mut self, guest: &Guest, watch: &Userfault) -> usize {
        let mut events = 0;
        loop {
            match watch.read() {
                Ok(None) => return events,
                Ok(Some(Event::Remapped)) => {}
                Ok(Some(Event::Fault { address, protected })) => {
                    guest.counters().faults.add(1);
                    match guest.layout().page_at(address) {
                        Some(page) => self.faults.push(Fault { page, protected }),
                        None => guest.satisfy(address),
                    }
                }
                Err(error) => fatal(format_args!("a userfaultfd cannot be read: {error}")),
            }
            events += 1;
        }
    }

    fn sleep(&mut self, guest: &Guest) {
        let [missing, protected] = guest.event_sources();
        let mut fds = [
            PollFd::new(missing, PollFlags::IN),
            PollFd::new(protected, PollFlags::IN),
            PollFd::new(&*self.bell, PollFlags::IN),
        ];
        let soon = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000,
        };
        let timeout = (!self.later.is_empty()).then_some(&soon);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            // For lack of memory, or of descriptors allowed: it looks again soon.
            Err(_) => std::thread::sleep(Duration::from_micros(100)),
        }
        let mut rung = [0; 8];
        let _ = rustix::io::read(&*self.bell, &mut rung);
    }
}
