//! The thread that holds a process to its limit: it looks, asks the [`LimitController`], and does what that says.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use levy_protocol::link::FromVmm;
use levy_protocol::process_memory::{Held, OwnHeld};
use page_share::Region;

use super::limit_controller::{Action, GuestPages, LimitController, Observed, PAGE, Step};
use super::outgoing::Outgoing;
use super::reclaimer::Reclaimer;
use super::{OwnThread, Threads, lock};

/// Memory touched to learn how fast memory can be touched here, bytes.
const TRIAL: usize = 1 << 20;

/// The thread, and what it shares with the client that speaks with the manager. Dropping it ends the thread and waits
/// until it has ended.
#[derive(Debug)]
pub(super) struct LimitThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    region: Arc<Region>,
    controller: Arc<Mutex<LimitController>>,
    reclaimer: Reclaimer,
    outgoing: Outgoing,
    /// The guest has left: the thread ends.
    ended: AtomicBool,
}

impl LimitThread {
    /// Begins to watch the growth of `region`, of a guest that is guaranteed `minimum` bytes. Without a limit until one is
    /// set.
    ///
    /// # Errors
    /// When the process cannot be measured, or the system refuses a thread.
    pub(super) fn start(region: &Arc<Region>, minimum: u64, threads: Threads) -> io::Result<Self> {
        let held = OwnHeld::open()?;
        let controller = LimitController::new(Instant::now(), minimum, touching_speed());
        let controller = Arc::new(Mutex::new(controller));
        let shared = Arc::new(Shared {
            region: Arc::clone(region),
            reclaimer: Reclaimer::new(Arc::clone(region), Arc::clone(&controller)),
            controller,
            outgoing: Outgoing::default(),
            ended: AtomicBool::new(false),
        });
        let at_work = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("limit-control".into())
            .stack_size(256 << 10)
            .spawn(move || {
                threads.started(OwnThread::LimitController);
                at_work.run(&held);
            })
            .map_err(levy_protocol::not_started)?;
        region.watch_growth(thread.thread().clone());
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The manager sets the limit; see [`LimitController::set_limit`].
    pub(super) fn set_limit(&self, limit: Option<u64>, owed: u64) {
        let is_new = lock(&self.shared.controller).set_limit(Instant::now(), limit, owed);
        if is_new {
            self.wake();
        }
    }

    /// Changes what is guaranteed to the guest, bytes.
    pub(super) fn set_minimum(&self, minimum: u64) {
        lock(&self.shared.controller).set_minimum(minimum);
    }

    /// A manager listens on `stream` from now on.
    pub(super) fn connect(&self, stream: UnixStream) {
        self.shared.outgoing.connect(stream);
        lock(&self.shared.controller).tell_again();
    }

    /// The manager is away.
    pub(super) fn lose_manager(&self) {
        self.shared.outgoing.disconnect();
        lock(&self.shared.controller).lose_manager();
        self.wake();
    }

    /// What is said to the manager.
    pub(super) fn outgoing(&self) -> &Outgoing {
        &self.shared.outgoing
    }

    /// What compresses and swaps the guest's pages.
    pub(super) fn reclaimer(&self) -> &Reclaimer {
        &self.shared.reclaimer
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for LimitThread {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.wake();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn run(&self, own: &OwnHeld) {
        let (mut freed, mut look) = (0, Duration::ZERO);
        while !self.ended.load(Ordering::SeqCst) {
            let start = Instant::now();
            // In this order: what grows in between is held, and counts as grown after the look too.
            let growth = self.region.growth();
            let seen = Observed {
                held: own.read().ok().map(Held::total),
                grown: growth.grown,
                waiting: growth.waiting,
                has_manager: self.outgoing.is_connected(),
                freed,
                look,
                pages: &|| GuestPages::of(&self.region.stats()),
            };
            let step = lock(&self.controller).step(start, &seen);
            freed = self.carry_out(step, growth.grown);
            let nap = if freed > 0 { Duration::ZERO } else { step.again };
            // A look that made room is not the usual one.
            if !nap.is_zero() {
                look = start.elapsed();
            }
            thread::park_timeout(nap);
        }
    }

    /// Does what `step` says; returns how many pages that freed.
    fn carry_out(&self, step: Step, grown: u64) -> u32 {
        if let Some(credit) = step.credit {
            self.region.set_credit(credit, grown);
        }
        // A manager that is gone is the client's to notice; one that does not read hears it once it does.
        if let Some(status) = step.tell
            && self.outgoing.send(&FromVmm::LimitStatus(status)).is_err()
        {
            lock(&self.controller).tell_again();
        }
        match step.action {
            Action::Nothing => {}
            Action::CloseGate => {
                log::debug!("growth is gated");
                self.region.close_gate();
            }
            Action::OpenGate => {
                log::debug!("growth is free");
                self.region.open_gate();
            }
            Action::MakeRoom(pages) => return self.reclaimer.make_room(pages),
        }
        0
    }
}

/// Bytes a second that a thread can touch for the first time. A guest's first touches cost more than ours, a guest with
/// several processors makes them on each.
fn touching_speed() -> u64 {
    let start = Instant::now();
    let mut trial = vec![0_u8; TRIAL];
    for at in (0..TRIAL).step_by(PAGE as usize) {
        trial[at] = 1;
    }
    std::hint::black_box(&trial);
    let nanoseconds = start.elapsed().as_nanos().max(1) as u64;
    (TRIAL as u64).saturating_mul(1_000_000_000) / nanoseconds
}

#[cfg(test)]
mod tests;
