//! The fault handler: one thread that resolves what is in memory and never waits for another thread.
//!
//! It takes no lock that a user of guest memory holds while touching it, never touches guest memory itself, never
//! talks to the manager and never moves a mapping. Reads of the swap file go to the swap thread. A filling call that
//! answers "try again" is tried again only after more events were read: the event of a moving mapping may be what
//! stands in its way, and reading it is this thread's job.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::page::{Gfn, PAGE_SIZE, Page};
use crate::region::adopt::{RegionThread, ThreadStarted};
use crate::region::error::fatal;
use crate::region::faults::swap_thread::SwapIn;
use crate::region::guest::gate::Admission;
use crate::region::guest::shared::{Filled, Guest};
use crate::region::kernel::memory::thread_cpu;
use crate::region::kernel::userfault::{Event, Userfault};
use crate::region::reclaim::squeeze::NEIGHBOURS;
use crate::region::run::PageRun;
use crate::region::table::state::{Claim, Pinned, State, mark};

/// Pages filled at one fault on an empty page: enough to make first touches cheap, few enough to be quick.
const FILL_PAGES: u32 = 64;

/// How long the handler looks for the next fault before it sleeps; longer would cost bystanders their cores.
const SPIN: Duration = Duration::from_micros(20);

/// Faults that can wait at once without an allocation.
const WAITING_FAULTS: usize = 4096;

/// Groups of neighbours that can wait to be decompressed; more are left where they are.
const WAITING_GROUPS: usize = 64;

/// The running thread.
#[derive(Debug)]
pub(crate) struct Handler {
    thread: Option<JoinHandle<()>>,
    bell: Arc<OwnedFd>,
    guest: Arc<Guest>,
}

impl Handler {
    /// Starts it. Swapped pages that are touched go to `swap_ins`.
    pub(crate) fn start(
        guest: Arc<Guest>,
        swap_ins: SyncSender<SwapIn>,
        started: ThreadStarted,
    ) -> std::io::Result<Self> {
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut worker = Worker::new(guest.clone(), bell.clone(), swap_ins);
        let thread = std::thread::Builder::new()
            .name("page-faults".into())
            .spawn(move || {
                started.tell(RegionThread::FaultHandler);
                worker.run();
            })?;
        Ok(Self {
            thread: Some(thread),
            bell,
            guest,
        })
    }

    /// Makes it look at the gate, and at whether it should end.
    pub(crate) fn ring(&self) {
        let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
    }

    /// Lets it run for as long as the process does.
    pub(crate) fn detach(&mut self) {
        self.thread = None;
    }

    /// Ends it. Everything that it holds up must have been given back before.
    pub(crate) fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.guest.closing.store(true, Ordering::SeqCst);
            self.ring();
            let _ = thread.join();
        }
    }
}

/// A handler that dies leaves its guest waiting for ever, and closing its descriptor would show the guest zeros.
struct AbortOnExit<'a>(&'a Guest);

impl Drop for AbortOnExit<'_> {
    fn drop(&mut self) {
        if !self.0.closing.load(Ordering::SeqCst) {
            fatal(format_args!("the fault handler died"));
        }
    }
}

/// A thread waits for this page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fault {
    page: u32,
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

struct Worker {
    guest: Arc<Guest>,
    bell: Arc<OwnedFd>,
    swap_ins: SyncSender<SwapIn>,
    /// To resolve now.
    faults: Vec<Fault>,
    /// To resolve after the next events.
    later: Vec<Fault>,
    /// To resolve when there is credit.
    gated: Vec<Fault>,
    /// Pages whose neighbours are to be decompressed when no access waits.
    nearby: Vec<u32>,
    buffer: Box<[Page]>,
}

impl Worker {
    /// With room for everything that it will ever hold: it never allocates.
    fn new(guest: Arc<Guest>, bell: Arc<OwnedFd>, swap_ins: SyncSender<SwapIn>) -> Self {
        Self {
            guest,
            bell,
            swap_ins,
            faults: Vec::with_capacity(WAITING_FAULTS),
            later: Vec::with_capacity(WAITING_FAULTS),
            gated: Vec::with_capacity(WAITING_FAULTS),
            nearby: Vec::with_capacity(WAITING_GROUPS),
            buffer: vec![[0; PAGE_SIZE]; NEIGHBOURS as usize].into_boxed_slice(),
        }
    }

    fn run(&mut self) {
        let guest = self.guest.clone();
        let _guard = AbortOnExit(&guest);
        let (mut cpu, mut busy_until) = (thread_cpu(), Instant::now());
        while !guest.closing.load(Ordering::SeqCst) {
            if self.serve(&guest) {
                busy_until = Instant::now() + SPIN;
            } else if Instant::now() < busy_until {
                std::hint::spin_loop();
            } else {
                let now = thread_cpu();
                guest.counters.handler_cpu_ns.add((now - cpu).as_nanos() as u64);
                cpu = now;
                self.sleep(&guest);
            }
        }
    }

    /// Reads all events, resolves what waits, and then at most one group of neighbours. Whether there was anything.
    fn serve(&mut self, guest: &Guest) -> bool {
        let events = self.collect(guest, &guest.watch) + self.collect(guest, &guest.pool_watch);
        // Until the mover goes on from the event that was just read, every try would fail.
        if !guest.moving.load(Ordering::SeqCst) {
            self.faults.append(&mut self.later);
        }
        if !self.gated.is_empty() && guest.gate.would_admit() {
            self.faults.append(&mut self.gated);
        }
        while let Some(fault) = self.faults.pop() {
            match self.resolve(guest, fault) {
                Outcome::Done => {}
                Outcome::Later => {
                    guest.counters.faults_retried.add(1);
                    self.later.push(fault);
                }
                // An access that was woken meanwhile, and found nothing changed, has asked before.
                Outcome::Gated if self.gated.contains(&fault) => {}
                Outcome::Gated => self.gated.push(fault),
            }
        }
        guest.disturbed.store(self.later.len(), Ordering::SeqCst);
        guest.gate.set_waiting(self.gated.len());
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
                    guest.counters.faults.add(1);
                    match guest.layout.page_at(address) {
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
        let mut fds = [
            PollFd::new(&guest.watch, PollFlags::IN),
            PollFd::new(&guest.pool_watch, PollFlags::IN),
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

    fn resolve(&mut self, guest: &Guest, fault: Fault) -> Outcome {
        let Fault { page, protected } = fault;
        let run = PageRun::new(Gfn::new(page), 1);
        let state = guest.table.state(page);
        match state {
            // The owner wakes the waiter when it settles the page.
            State::InTransit => {
                guest.counters.faults_waited.add(1);
                return Outcome::Done;
            }
            State::Shared | State::Broken if protected => {
                return self.grow(guest, |worker| worker.let_break(guest, page, state));
            }
            State::Empty | State::Ballooned => {
                return self.grow(guest, |worker| worker.fill(guest, page, state));
            }
            State::Private | State::Zero | State::Huge if !protected => {
                return self.refill(guest, page, state);
            }
            State::Sampled => return self.touch_sampled(guest, page),
            // What comes back from storage grows too: it was given up so that others could have the memory.
            State::Compressed => return self.grow(guest, |worker| worker.decompress(guest, page)),
            State::Swapped => return self.grow(guest, |worker| worker.swap_in(guest, page)),
            State::Lost => drop(guest.watch.poison(guest.span(run))),
            // A fault from before the page got its content, or nothing of ours.
            State::Private | State::Zero | State::Shared | State::Broken | State::Hole | State::Huge => {}
        }
        guest.watch.wake(guest.span(run));
        guest.pool_watch.wake(guest.span(run));
        Outcome::Done
    }

    /// Does what needs a page of memory if there is credit for one. Credit that could not be used yet is not lost.
    fn grow(&mut self, guest: &Guest, action: impl FnOnce(&mut Self) -> Outcome) -> Outcome {
        let admission = guest.gate.admit_one();
        if admission == Admission::Refused {
            guest.counters.faults_gated.add(1);
            return Outcome::Gated;
        }
        let outcome = action(self);
        if outcome == Outcome::Later && admission == Admission::Paid {
            guest.gate.refund();
        }
        outcome
    }

    /// A write to a pool page waits at its protection: for credit, or because the gate has just opened.
    fn let_break(&self, guest: &Guest, page: u32, state: State) -> Outcome {
        // Claimed, so that no re-home is between its protection and its copy.
        let Some(claim) = guest.table.claim(page, state) else {
            return Outcome::Later;
        };
        if let Err(error) = guest.pool_watch.unprotect(guest.span(claim.run()))
            && error == Errno::AGAIN
        {
            guest.settle(claim, state);
            return Outcome::Later;
        }
        guest.settle(claim, state);
        Outcome::Done
    }

    /// An empty page is touched: zeros, for its empty neighbours too.
    fn fill(&self, guest: &Guest, page: u32, state: State) -> Outcome {
        if guest.gate.is_closed() {
            return self.fill_with_memory(guest, page, state);
        }
        let Some(mut claim) = self.claim_to_fill(guest, page, state) else {
            return Outcome::Later;
        };
        if guest.gate.is_closed() {
            // Closed meanwhile: the thread that did it waits for what is claimed, or looks later and finds zeros to
            // drop.
            guest.settle(claim, state);
            return Outcome::Later;
        }
        let mut progress = guest.watch.zero(guest.span(claim.run()));
        if claim.run().count > 1 && matches!(progress.stopped, Some(Errno::NOENT | Errno::INVAL)) {
            // The neighbours are in another mapping, which one call cannot span.
            guest.settle(claim, state);
            let Some(alone) = guest.table.claim(page, state) else {
                return Outcome::Later;
            };
            claim = alone;
            progress = guest.watch.zero(guest.span(claim.run()));
        }
        let pages = claim.run().count;
        let (filled, rest) = claim.split(progress.pages as u32);
        guest.counters.pages_filled.add(progress.pages as u64);
        if state == State::Ballooned {
            guest.counters.balloon_pops.add(progress.pages as u64);
        }
        if filled.run().count > 0 {
            guest.settle(filled, State::Zero);
        } else {
            drop(filled);
        }
        match progress.stopped {
            None => drop(rest),
            // Filled behind the handler's back: it is there.
            Some(Errno::EXIST) => guest.settle(rest, State::Private),
            Some(_) => guest.settle(rest, state),
        }
        if progress.pages as u32 == pages || progress.stopped == Some(Errno::EXIST) {
            Outcome::Done
        } else {
            Outcome::Later
        }
    }

    /// While growth is gated a touched page gets memory at once: the kernel would give it to the zero page's first
    /// writer without asking.
    fn fill_with_memory(&self, guest: &Guest, page: u32, state: State) -> Outcome {
        let Some(claim) = guest.table.claim(page, state) else {
            return Outcome::Later;
        };
        if guest.try_copy(&claim, &[0; PAGE_SIZE]) == Filled::Later {
            guest.settle(claim, state);
            return Outcome::Later;
        }
        guest.counters.pages_filled.add(1);
        if state == State::Ballooned {
            guest.counters.balloon_pops.add(1);
        }
        guest.settle(claim, State::Private);
        Outcome::Done
    }

    /// The empty pages around `page` in its aligned group; only itself when it was ballooned.
    fn claim_to_fill(&self, guest: &Guest, page: u32, state: State) -> Option<Claim> {
        if state == State::Ballooned {
            return guest.table.claim(page, state);
        }
        self.claim_group(guest, page, state, FILL_PAGES)
    }

    /// Claims the pages around `page` in its aligned group of `size`, as far as all are in the same state.
    fn claim_group(&self, guest: &Guest, page: u32, state: State, size: u32) -> Option<Claim> {
        let run = alike_around(guest, page, state, size)?;
        let claim = guest.claim_run(run, state, Pinned::Ignore)?;
        if claim.run().numbers().contains(&page) {
            return Some(claim);
        }
        guest.settle(claim, state);
        guest.table.claim(page, state)
    }

    /// A page that should be there is missing: a caller dropped it, the kernel still watches what was to be left to
    /// it, or the fault is old news.
    fn refill(&self, guest: &Guest, page: u32, state: State) -> Outcome {
        let Some(claim) = guest.table.claim(page, state) else {
            return Outcome::Later;
        };
        let progress = guest.watch.zero(guest.span(claim.run()));
        guest.settle(claim, state);
        match progress.stopped {
            // Not watched any more: settling it has let the access try again.
            None | Some(Errno::EXIST | Errno::NOENT) => Outcome::Done,
            Some(_) => Outcome::Later,
        }
    }

    fn touch_sampled(&mut self, guest: &Guest, page: u32) -> Outcome {
        let Some(claim) = guest.table.claim(page, State::Sampled) else {
            return Outcome::Later;
        };
        let place = guest.table.detail(page) as usize;
        let place = guest.sampling.span().sub(place, 1);
        if guest.try_give_back(&claim, place, &mut self.buffer[0]) == Filled::Later {
            guest.settle(claim, State::Sampled);
            return Outcome::Later;
        }
        guest.counters.samples_touched.add(1);
        guest.settle(claim, State::Private);
        Outcome::Done
    }

    /// The touched page alone, so that its waiter goes on; its neighbours come when no access waits.
    fn decompress(&mut self, guest: &Guest, page: u32) -> Outcome {
        let Some(claim) = guest.table.claim(page, State::Compressed) else {
            return Outcome::Later;
        };
        if guest.expand(page, &mut self.buffer[0]).is_err() {
            return self.leave_to_swapper(guest, claim, page);
        }
        let handle = guest.table.detail(page);
        if guest.try_copy(&claim, &self.buffer[0]) == Filled::Later {
            guest.settle(claim, State::Compressed);
            return Outcome::Later;
        }
        guest.forget_stored(handle, State::Compressed);
        guest.counters.pages_decompressed.add(1);
        guest.settle(claim, State::Private);
        if self.nearby.len() < WAITING_GROUPS {
            self.nearby.push(page);
        }
        Outcome::Done
    }

    /// Brings back the compressed pages next to `page`, which just came back, on both sides within its aligned group.
    /// Not while growth is gated: no access asked for them.
    fn decompress_neighbours(&mut self, guest: &Guest, page: u32) {
        if guest.gate.is_closed() {
            return;
        }
        for next in [page.checked_add(1), page.checked_sub(1)].into_iter().flatten() {
            if next / NEIGHBOURS == page / NEIGHBOURS
                && next < guest.table.pages()
                && guest.table.state(next) == State::Compressed
                && let Some(claim) = self.claim_group(guest, next, State::Compressed, NEIGHBOURS)
            {
                self.decompress_claim(guest, claim);
            }
        }
    }

    /// As many of the claimed pages as come back at the first try.
    fn decompress_claim(&mut self, guest: &Guest, claim: Claim) {
        // A damaged one, and what follows it, waits for its own touch.
        let (intact, _) = guest.expand_run(claim.run(), &mut self.buffer);
        let run = PageRun::new(claim.run().first, intact);
        let copied = match intact {
            0 => 0,
            _ => guest.try_copy_run(run, &self.buffer[..intact as usize]),
        };
        let (back, rest) = claim.split(copied);
        for page in back.run().numbers() {
            guest.forget_stored(guest.table.detail(page), State::Compressed);
        }
        guest.counters.pages_decompressed.add(u64::from(copied));
        guest.counters.neighbours_decompressed.add(u64::from(copied));
        for (part, state) in [(back, State::Private), (rest, State::Compressed)] {
            if part.run().count > 0 {
                guest.settle(part, state);
            }
        }
    }

    /// The touched page and its neighbours, for one read. While growth is gated it comes alone.
    fn swap_in(&self, guest: &Guest, page: u32) -> Outcome {
        let size = if guest.gate.is_closed() { 1 } else { NEIGHBOURS };
        let Some(claim) = self.claim_group(guest, page, State::Swapped, size) else {
            return Outcome::Later;
        };
        self.leave_to_swapper(guest, claim, page)
    }

    /// What would make this thread wait.
    fn leave_to_swapper(&self, guest: &Guest, claim: Claim, page: u32) -> Outcome {
        let wanted = PageRun::new(Gfn::new(page), 1);
        for page in claim.run().numbers() {
            guest.table.add_marks(page, mark::READING);
        }
        match self.swap_ins.try_send(SwapIn { claim, wanted }) {
            Ok(()) => Outcome::Done,
            Err(TrySendError::Full(SwapIn { claim, .. })) => {
                let from = claim.from();
                guest.settle(claim, from);
                Outcome::Later
            }
            Err(TrySendError::Disconnected(_)) => fatal(format_args!("the swap thread died")),
        }
    }
}

/// From the first page in state `state` before `page`, without a gap, to the end of the aligned group of `size`.
fn alike_around(guest: &Guest, page: u32, state: State, size: u32) -> Option<PageRun> {
    let group = PageRun::new(Gfn::new(page / size * size), size);
    let mut parts = guest.layout.clip(group);
    let group = parts.find(|run| run.numbers().contains(&page))?;
    let alike = |&before: &u32| guest.table.state(before) == state;
    let before = (group.first.get()..page).rev().take_while(alike).count();
    Some(PageRun::of(page - before as u32..group.end()))
}

#[cfg(test)]
mod tests;
