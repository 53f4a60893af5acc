//! How much memory this process may hold, and what happens when that is used up.
//!
//! The manager names a limit; the sum of all limits never exceeds its budget. A thread of its own, the keeper, compares
//! what the process holds with it. While there is room for more than the guest could take before the next look, growth
//! is free. Then the gate closes: from now on every page that grows is counted, and the limit holds exactly, however
//! fast the guest is. Where accesses wait at the gate the manager hears at once; when it has no more to give, the guest
//! makes room for itself, by compressing and swapping pages of its own.
//!
//! A guest that has less than its minimum gives nothing up, not even for itself: it waits for what was promised, which
//! others have to give up first. What has not come after [`OVERDUE`] it takes.
//!
//! A limit outlives its manager: see [`Lease`]. Nothing here waits for one either. A manager that does not read what it
//! is told misses it.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use page_share::{Growth, PageRun, Region};
use rustix::net::SendFlags;

use super::guaranteed::Guaranteed;
use super::lease::Lease;
use super::squeezer::parts;
use super::swapper::Swapper;
use super::{OwnThread, Threads};
use levy_protocol::link::{FromVmm, LimitStatus, Lines};
use levy_protocol::process_memory::{Held, OwnHeld};

const PAGE: u64 = 4096;

/// Longest time between two looks.
const LAZY: Duration = Duration::from_millis(200);
/// Shortest time between two looks at a gate that is open.
const QUICK: Duration = Duration::from_millis(5);
/// A look may take this part of the time until the next one.
const LOOK_PART: u32 = 50;
/// The gate opens again when there was room for this many bursts for [`CALM`]; at once when there is room for all that
/// the guest could ever take.
const PLENTY: u64 = 6;
/// See [`PLENTY`]; this long after it opened last the gate opens at once when there is [`AMPLE`] room.
const CALM: Duration = Duration::from_secs(10);
/// Bursts that there is room for when a limit was raised far above what the guest has: its next accesses bring many pages
/// back, each of which would wait at the gate.
const AMPLE: u64 = 2 * PLENTY;
/// How long accesses wait for memory that was promised to the guest, until it is taken without the manager's leave.
const OVERDUE: Duration = Duration::from_secs(10);
/// The smallest burst that is reckoned with, bytes.
const LEAST_BURST: u64 = 1 << 20;
/// How long waiting accesses leave it to the manager to find memory elsewhere, where it means to.
const GRACE: Duration = Duration::from_millis(100);
/// How long a manager that had nothing to give is not asked before room is made.
const BARREN: Duration = Duration::from_secs(1);
/// Shortest time between two words to the manager.
const SAY: Duration = Duration::from_millis(25);
/// Pages that make room at a time.
const HANDFUL: u32 = 256;
/// The same where the limit itself was lowered.
const ARMFUL: u32 = 2048;
/// Credit below which room is made ahead of need, pages.
const SCARCE: u64 = 128;
/// Beyond its limit by so little a process is left alone: its own tables grow and shrink too.
const TOLERANCE: u64 = 1 << 20;
/// Memory touched to learn how fast memory can be touched here, bytes.
const TRIAL: usize = 1 << 20;

/// One process's allowance. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Allowance(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    region: Arc<Region>,
    /// What the process may hold.
    lease: Mutex<Lease>,
    /// Bytes beyond the limit that the manager means to give as soon as it has them.
    owed: AtomicU64,
    gated: AtomicBool,
    /// What was promised to the guest, bytes; common copies and the zero page are part of it.
    minimum: AtomicU64,
    /// Bytes that the process held when the keeper looked last; 0 before that.
    held: AtomicU64,
    /// Held from asking what is to spare until that is taken: the keeper and the attendant would take the same twice.
    taking: Mutex<()>,
    /// How often the manager has set the limit.
    answers: AtomicU64,
    /// Where the manager listens.
    voice: Mutex<Option<UnixStream>>,
    /// The manager has not heard yet how this process stands with its limit.
    is_news: AtomicBool,
    keeper: Mutex<Option<JoinHandle<()>>>,
    /// The guest has left: the keeper ends.
    ended: AtomicBool,
}

impl Allowance {
    /// Starts the keeper of the growth of `swapper`'s region, of a guest that was promised `minimum` bytes. Without a
    /// limit until one is set.
    ///
    /// # Errors
    /// When the process cannot be measured, or the system refuses a thread.
    pub(super) fn start(swapper: &Arc<Swapper>, minimum: u64, threads: Threads) -> io::Result<Self> {
        let region = swapper.region();
        let allowance = Self(Arc::new(Shared {
            region: Arc::clone(region),
            lease: Mutex::new(Lease::begin(Instant::now())),
            owed: AtomicU64::new(0),
            gated: AtomicBool::new(false),
            minimum: AtomicU64::new(minimum),
            held: AtomicU64::new(0),
            taking: Mutex::new(()),
            answers: AtomicU64::new(0),
            voice: Mutex::new(None),
            is_news: AtomicBool::new(true),
            keeper: Mutex::new(None),
            ended: AtomicBool::new(false),
        }));
        let mut keeper = Keeper::new(allowance.clone(), Arc::clone(swapper))?;
        let thread = thread::Builder::new()
            .name("limit-control".into())
            .stack_size(256 << 10)
            .spawn(move || {
                threads.started(OwnThread::LimitController);
                keeper.run();
            })
            .map_err(levy_protocol::not_started)?;
        region.watch_growth(thread.thread().clone());
        *allowance.keeper() = Some(thread);
        Ok(allowance)
    }

    /// The manager sets the limit and what may be expected beyond it, in bytes; `None` lets the guest grow freely for as
    /// long as the manager is there.
    pub(super) fn set(&self, limit: Option<u64>, owed: u64) {
        self.0.owed.store(owed, Ordering::SeqCst);
        self.0.answers.fetch_add(1, Ordering::SeqCst);
        let mut lease = self.lease();
        let before = *lease;
        lease.renew(Instant::now(), limit);
        let is_same = matches!(before, Lease::Granted { limit: earlier, .. } if earlier == limit);
        if !is_same {
            self.wake();
        }
    }

    /// The manager is away. What it set last holds for a while, and nothing more is to be expected from it.
    pub(super) fn lose_manager(&self) {
        *self.voice() = None;
        self.0.owed.store(0, Ordering::SeqCst);
        self.lease().lose();
        self.wake();
    }

    /// The guest leaves: ends the keeper, and waits until it has ended.
    pub(super) fn end(&self) {
        self.0.ended.store(true, Ordering::SeqCst);
        self.wake();
        let keeper = self.keeper().take();
        if let Some(keeper) = keeper {
            let _ = keeper.join();
        }
    }

    fn wake(&self) {
        if let Some(keeper) = &*self.keeper() {
            keeper.thread().unpark();
        }
    }

    fn keeper(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.0.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what was promised to the guest, bytes.
    pub(super) fn promise(&self, minimum: u64) {
        self.0.minimum.store(minimum, Ordering::SeqCst);
    }

    /// Pages that may be compressed or swapped: what the guest has above its minimum.
    pub(super) fn spare(&self) -> u64 {
        self.guaranteed().spare() / PAGE
    }

    /// Takes `part` of the guest's pages in `way`, or as much of it as is to spare; `None` where that is nothing.
    pub(super) fn part_with<T>(&self, part: PageRun, way: impl FnOnce(PageRun) -> T) -> Option<T> {
        let _taking = self.0.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = u32::try_from(self.spare()).unwrap_or(u32::MAX);
        let part = PageRun::new(part.first, part.count.min(spare));
        (spare > 0).then(|| way(part))
    }

    fn guaranteed(&self) -> Guaranteed {
        let held = self.0.held.load(Ordering::SeqCst);
        Guaranteed::of(&self.0.region, held, self.0.minimum.load(Ordering::SeqCst))
    }

    /// Where the manager listens from now on.
    pub(super) fn speak_to(&self, manager: UnixStream) {
        *self.voice() = Some(manager);
        self.0.is_news.store(true, Ordering::SeqCst);
    }

    /// Tells the manager something, without waiting for it.
    ///
    /// # Errors
    /// `WouldBlock` when it has not read for some time, so that this is lost on it; every other one when it is away.
    pub(super) fn say(&self, word: &FromVmm) -> io::Result<()> {
        let mut voice = self.voice();
        let Some(stream) = &*voice else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let line = Lines::encode(word)?;
        let sent = rustix::net::send(stream, &line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        if sent < line.len() {
            // Half a line makes garbage of the next one.
            *voice = None;
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    fn is_alone(&self) -> bool {
        self.voice().is_none()
    }

    fn voice(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.0.voice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.0.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that holds a process to its allowance.
struct Keeper {
    allowance: Allowance,
    region: Arc<Region>,
    swapper: Arc<Swapper>,
    held: OwnHeld,
    /// Bytes a second that a guest could take here.
    speed: u64,
    /// How long one look takes.
    look: Duration,
    /// Since when there is plenty of room behind a closed gate.
    calm_since: Option<Instant>,
    /// When the gate was opened last.
    opened: Option<Instant>,
    /// Memory that was promised to the guest has not come in time: it is taken.
    overdue: bool,
    /// Since when accesses wait for credit, and how often the manager had set the limit then.
    waiting_since: Option<(Instant, u64)>,
    /// When it last had nothing to give.
    barren: Option<Instant>,
    /// What the manager was told last, and when.
    said: (LimitStatus, Instant),
    /// Pages grown through the gate at the last look.
    grown: u64,
}

impl Keeper {
    fn new(allowance: Allowance, swapper: Arc<Swapper>) -> io::Result<Self> {
        Ok(Self {
            swapper,
            region: Arc::clone(&allowance.0.region),
            allowance,
            held: OwnHeld::open()?,
            speed: touching_speed(),
            look: Duration::ZERO,
            calm_since: None,
            opened: None,
            overdue: false,
            waiting_since: None,
            barren: None,
            said: (LimitStatus::default(), Instant::now()),
            grown: 0,
        })
    }

    fn run(&mut self) {
        while !self.allowance.0.ended.load(Ordering::SeqCst) {
            let start = Instant::now();
            // In this order: what grows in between is held, and counts as grown after the look too.
            let growth = self.region.growth();
            let held = self.held.read().ok().map(Held::total);
            let limit = self.allowance.lease().limit(start, held);
            let nap = match limit {
                // A process that cannot be measured may not grow.
                Some(limit) => self.keep(limit, held.unwrap_or(limit), growth),
                None => {
                    self.open();
                    LAZY
                }
            };
            // A look that made room is not the usual one.
            if !nap.is_zero() {
                self.look = start.elapsed().min(LAZY / LOOK_PART);
            }
            thread::park_timeout(nap);
        }
    }

    fn is_gated(&self) -> bool {
        self.allowance.0.gated.load(Ordering::SeqCst)
    }

    /// Shortest time between two looks here: they must not cost the guest its CPU.
    fn quick(&self) -> Duration {
        QUICK.max(self.look * LOOK_PART)
    }

    /// What the guest could take until the next look.
    fn burst(&self) -> u64 {
        bytes_in(self.speed, self.quick()).max(LEAST_BURST)
    }

    /// What the guest could take at all.
    fn growable(&self) -> u64 {
        let stats = self.region.stats();
        let absent =
            stats.empty + stats.zero + stats.shared + stats.ballooned + stats.compressed + stats.swapped;
        // What of a huge block is there is not known.
        (absent + stats.huge) * PAGE
    }

    /// One look at a process that holds `held` bytes; returns when the next one is due.
    fn keep(&mut self, limit: u64, held: u64, growth: Growth) -> Duration {
        self.allowance.0.held.store(held, Ordering::SeqCst);
        let limit = self.with_overdue(limit, held);
        let room = limit.saturating_sub(held);
        if !self.is_gated() {
            if room > self.burst() || room > self.growable() {
                self.report(limit, 0);
                return time_for(self.speed, room / 2).clamp(self.quick(), LAZY);
            }
            self.close();
            return Duration::ZERO;
        }
        self.region
            .set_credit(u32::try_from(room / PAGE).unwrap_or(u32::MAX), growth.grown);
        let grew = growth.grown != std::mem::replace(&mut self.grown, growth.grown);
        self.report(limit, growth.waiting);
        if held > limit.saturating_add(TOLERANCE) {
            let excess = u32::try_from((held - limit) / PAGE).unwrap_or(u32::MAX);
            return self.after(self.make_room(excess.min(ARMFUL)));
        }
        if growth.waiting > 0 && room < PAGE {
            return self.feed();
        }
        self.waiting_since = None;
        if room > self.growable() + LEAST_BURST {
            self.open();
            return LAZY;
        }
        let bursts = room / self.burst();
        if bursts >= PLENTY {
            let calm = self.calm_since.get_or_insert_with(Instant::now).elapsed();
            if is_safe(bursts, calm, self.opened.map(|when| when.elapsed())) {
                self.open();
            }
            return LAZY;
        }
        self.calm_since = None;
        // A guest that goes on growing need not find the gate shut first.
        if grew && room / PAGE < SCARCE && self.is_barren() {
            return self.after(self.make_room(HANDFUL));
        }
        if grew { self.quick() } else { LAZY }
    }

    /// Accesses wait and there is no credit: the manager's turn, which has heard of it; then, or where it has had nothing
    /// just now, ours.
    fn feed(&mut self) -> Duration {
        let answers = self.allowance.0.answers.load(Ordering::SeqCst);
        let (since, before) = *self
            .waiting_since
            .get_or_insert_with(|| (Instant::now(), answers));
        let owed = self.allowance.0.owed.load(Ordering::SeqCst);
        let refused = owed == 0 && (answers > before || self.allowance.is_alone());
        if refused || since.elapsed() >= GRACE {
            self.barren = Some(Instant::now());
        } else if owed > 0 || !self.is_barren() {
            return QUICK;
        }
        let freed = self.make_room(HANDFUL);
        let short = self.allowance.guaranteed().short() > 0;
        self.overdue |= freed == 0 && short && since.elapsed() >= OVERDUE;
        self.after(freed)
    }

    /// `limit`, or what the guest was promised where it has waited for that long enough.
    fn with_overdue(&mut self, limit: u64, held: u64) -> u64 {
        if !self.overdue {
            return limit;
        }
        let short = self.allowance.guaranteed().short();
        self.overdue = short > 0;
        limit.max(held.saturating_add(short))
    }

    /// Whether the manager has nothing to give, as far as is known.
    fn is_barren(&self) -> bool {
        self.barren.is_some_and(|when| when.elapsed() < BARREN)
    }

    /// When to look again after `freed` pages made room.
    fn after(&self, freed: u32) -> Duration {
        if freed > 0 { Duration::ZERO } else { self.quick() }
    }

    /// Compresses pages of the guest, and swaps those out that do not compress or for which the store has no room.
    /// What was promised to it stays.
    fn make_room(&self, pages: u32) -> u32 {
        let mut freed = 0;
        let pages = pages.min(u32::try_from(self.allowance.spare()).unwrap_or(u32::MAX));
        if pages == 0 {
            return 0;
        }
        for part in parts(self.region.victims(pages)) {
            match self.allowance.part_with(part, |part| self.take(part)) {
                Some(taken) => freed += taken,
                None => break,
            }
        }
        freed
    }

    fn take(&self, part: PageRun) -> u32 {
        let compressed = self.region.compress(part).min(part.count);
        if compressed == part.count {
            return compressed;
        }
        compressed + self.swapper.swap_out(part).unwrap_or(0)
    }

    fn close(&mut self) {
        log::debug!("growth is gated");
        self.allowance.0.gated.store(true, Ordering::SeqCst);
        self.region.close_gate();
        self.calm_since = None;
    }

    fn open(&mut self) {
        if self.allowance.0.gated.swap(false, Ordering::SeqCst) {
            log::debug!("growth is free");
            self.region.open_gate();
            self.opened = Some(Instant::now());
            self.waiting_since = None;
        }
    }

    /// Tells the manager at once what cannot wait for the next report: who waits, and which limit holds by now.
    fn report(&mut self, limit: u64, waiting: u64) {
        let standing = LimitStatus {
            limit_bytes: Some(limit),
            waiting,
            gated: self.is_gated(),
        };
        let (before, when) = self.said;
        let urgent = self.allowance.0.is_news.load(Ordering::SeqCst)
            || before.limit_bytes != standing.limit_bytes
            || before.gated != standing.gated
            || (before.waiting > 0) != (waiting > 0)
            || waiting > 0;
        if !urgent || when.elapsed() < SAY {
            return;
        }
        self.allowance.0.is_news.store(false, Ordering::SeqCst);
        self.said = (standing, Instant::now());
        // A manager that is gone is the attendant's to notice; one that does not read hears it once it does.
        if self.allowance.say(&FromVmm::LimitStatus(standing)).is_err() {
            self.allowance.0.is_news.store(true, Ordering::SeqCst);
        }
    }
}

/// Whether a gate can open behind which there is room for `bursts` bursts, for `calm` by now, and which was opened last
/// such a time ago.
fn is_safe(bursts: u64, calm: Duration, opened: Option<Duration>) -> bool {
    let rested = opened.is_none_or(|ago| ago > CALM);
    bursts >= PLENTY && (calm > CALM || (rested && bursts >= AMPLE))
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

fn bytes_in(speed: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(speed) * time.as_nanos() / 1_000_000_000).unwrap_or(u64::MAX)
}

fn time_for(speed: u64, bytes: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / speed.max(1) as f64)
}

#[cfg(test)]
mod tests;
