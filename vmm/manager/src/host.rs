//! The manager at work: the sockets where guests' processes connect, their connections, and the round once a second.
//!
//! Threads: one that listens to all guests (`connections`), one at the socket for pages and one more for each
//! sharing guest, which serves its pages (`pages`), and the caller's own, which runs the rounds
//! (`rounds`), and one that writes down who has ended (`keeping`). All meet at the [`Registry`]'s lock, which no thread holds while reading or writing a socket or
//! while asking the kernel about processes; a sharing domain has a lock of its own.
//!
//! # What a hostile process can do
//! A process that breaks the protocol, or sends more than a guest has to say, is cut off at both sockets, counted, and
//! kept out for a while. No thread waits for it meanwhile: orders go out without waiting, and a process that leaves them
//! unread is cut off. Its references stay counted until it is dead.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use allocator::{GuestId, Pages};
use log::Level;

use super::cgroup::{self, MemoryHigh};
use super::connection_limits::ConnectionLimits;
use super::connections::Connections;
use super::keeper::Keeper;
use super::kept::KeptSettings;
use super::links::Links;
use super::open_sockets::{Lost, OpenSockets};
use super::outgoing::push;
use super::policy::Settings;
use super::registry::Registry;
pub use super::sockets::{HostError, Sockets, kept_in};
use super::spare;
use super::statistics::{SocketCounters, Spread, Statistics, since_us};
use super::trigger::Trigger;
use levy_protocol::link::{FromManager, LimitStatus, Report};
use levy_protocol::process_memory::ProcessMemory;

/// The manager of one host. Clones are the same manager.
#[derive(Debug, Clone)]
pub struct Host(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    registry: Mutex<Registry>,
    links: Mutex<Links>,
    connection_limits: Mutex<ConnectionLimits>,
    statistics: Mutex<Statistics>,
    keeper: Mutex<Keeper>,
    /// Rung when what is kept is out of date.
    write_trigger: Trigger,
    /// Held while a guest is told its limits: it hears the latest last.
    telling: Mutex<()>,
    sockets: Sockets,
    /// None once it closes.
    open_sockets: Mutex<Option<OpenSockets>>,
    lost: AtomicBool,
    closing: AtomicBool,
    memory_high: Mutex<Option<MemoryHigh>>,
    round_trigger: Trigger,
}

/// How a manager begins.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// Its settings.
    pub settings: Settings,
    /// Of these, what was set at run time, under it or a manager before it, and holds for the next one too.
    pub kept: KeptSettings,
    /// How much swap and compression may be promised.
    pub backing: Pages,
}

/// Why a connection is over.
#[derive(Debug)]
pub(super) enum End {
    /// In good order, or by an accident.
    Left(String),
    /// Its process was not admitted.
    Refused(String),
    /// The process at the other end broke the rules.
    Offence(String),
}

impl Host {
    /// Opens the sockets and lets guests in; those that a manager before admitted here are taken back, whatever the
    /// budget is now. `backing` is how much swap and compression may be promised.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn open(sockets: Sockets, settings: Settings, backing: Pages) -> Result<Self, HostError> {
        let kept = KeptSettings::default();
        Self::begin(
            sockets,
            Start {
                settings,
                kept,
                backing,
            },
        )
    }

    /// The same with settings that hold for the next manager too.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn begin(sockets: Sockets, start: Start) -> Result<Self, HostError> {
        let mut open = OpenSockets::open(&sockets)?;
        let mut registry = Registry::new(start.settings, start.backing);
        let (keeper, before) = Keeper::open(&sockets.kept, start.kept)?;
        // What guests hold that are taken back, and what this process does, counts from the beginning.
        let mut process_memory = ProcessMemory::default();
        registry.take_in(&registry.survey().measure(&mut process_memory));
        if let Some(before) = before {
            registry.take_back(&before);
            let survey = registry.survey();
            registry.take_in(&survey.measure(&mut process_memory));
            let processes = survey.processes.iter();
            cgroup::let_go(&processes.map(|process| process.pid).collect::<Vec<_>>());
        }
        let host = Self(Arc::new(Shared {
            registry: Mutex::new(registry),
            links: Mutex::default(),
            connection_limits: Mutex::default(),
            statistics: Mutex::default(),
            keeper: Mutex::new(keeper),
            write_trigger: Trigger::default(),
            telling: Mutex::default(),
            sockets,
            open_sockets: Mutex::new(None),
            lost: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            round_trigger: Trigger::default(),
            memory_high: Mutex::new(None),
        }));
        let listeners = open.fresh_guests().zip(open.fresh_pages());
        let (guests, pages) = listeners.expect("both were just opened");
        *host.open_sockets() = Some(open);
        host.keep();
        let connections = Connections::new(host.clone(), guests).map_err(HostError::System)?;
        let [beside, behind] = [host.clone(), host.clone()];
        start_thread("guests", move || connections.run())
            .and_then(|()| start_thread("pages", move || beside.receive_pages(pages)))
            .and_then(|()| start_thread("keeper", move || behind.keep_when_outdated()))
            .inspect_err(|_| host.close())?;
        Ok(host)
    }

    /// The guests and the policy over them. Hold it briefly: every guest's report waits for it.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        lock(&self.0.registry)
    }

    /// Puts all guests, those that are admitted from now on too, into the control group of `memory_high`, until this is called
    /// with `None`, which removes the group.
    pub fn use_cgroup(&self, memory_high: Option<MemoryHigh>) {
        let processes = self.registry().survey().processes;
        *lock(&self.0.memory_high) = memory_high;
        for process in processes {
            self.enter_cgroup(process.id, process.pid);
        }
    }

    /// Ends [`Host::run`], closes the sockets and hangs up. Guests run on without a manager and look for the next one.
    pub fn close(&self) {
        // What is being written is written, and no more is after it: where no socket is there the next manager begins, and
        // the file is its own.
        let writing = self.keeper();
        if self.0.closing.swap(true, Ordering::SeqCst) {
            return;
        }
        drop(writing);
        for socket in [&self.0.sockets.guests, &self.0.sockets.pages] {
            // Wakes the thread that listens there; it then sees that it is over.
            let _ = UnixStream::connect(socket);
        }
        // Each removes its file, unless that is another manager's by now.
        drop(self.open_sockets().take());
        self.0.round_trigger.fire();
        self.0.write_trigger.fire();
        self.links().close();
    }

    /// Closes: no guest would find this manager any more.
    pub(super) fn give_up(&self, lost: &Lost) {
        if !self.0.lost.swap(true, Ordering::SeqCst) {
            log::error!("{lost}");
        }
        self.close();
    }

    /// Whether it closed by itself, because its run directory is gone or another manager's.
    pub fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::SeqCst)
    }

    /// Tells one guest something, and says whether it went out. Never waits: a process that left so much unread that
    /// there is no room is cut off.
    pub fn tell(&self, id: GuestId, message: &FromManager) -> bool {
        let mut links = self.links();
        let Some(stream) = links.of(id) else {
            return false;
        };
        let sent = push(&stream, message);
        let Err(error) = sent else { return true };
        let _ = stream.shutdown(Shutdown::Both);
        links.ended(id, &stream);
        drop(links);
        self.statistics().counters.cut_offs += 1;
        let name = self.name(id);
        self.say(
            Level::Warn,
            format_args!("{name:?} does not read what it is told, it is cut off: {error}"),
        );
        false
    }

    /// What has happened at the sockets so far.
    pub fn counters(&self) -> SocketCounters {
        self.statistics().counters
    }

    /// How long the latest reports took from being sent to being known here, microseconds.
    pub fn handling(&self) -> Spread {
        self.statistics().handling.spread()
    }

    /// How many rounds there were; from the begin of one to that of the next, and what each took, microseconds.
    pub fn rounds(&self) -> (u64, Spread, Spread) {
        let statistics = self.statistics();
        (
            statistics.rounds.count,
            statistics.rounds.gaps.spread(),
            statistics.rounds.work.spread(),
        )
    }

    /// What guest `id` is called; its number once it is gone.
    pub(super) fn name(&self, id: GuestId) -> String {
        self.registry().named(&id.to_string())
    }

    /// Whether process `pid` runs a guest that was admitted here.
    pub(super) fn runs_guest(&self, pid: u32) -> bool {
        let registry = self.registry();
        let mut guests = registry.guests();
        // The number of a dead one may have gone to another process.
        guests.any(|(_, process)| process.pid == pid && process.handle.dead().is_none())
    }

    /// Process `pid`, through which a guest may speak, asked at the API.
    pub(super) fn note_intruder(&self, pid: u32) {
        let mut statistics = self.statistics();
        statistics.counters.intruders += 1;
        if statistics.intrusions.is_due() {
            log::warn!(
                "process {pid}, which runs a guest, asked at the API; its guest may have taken it over"
            );
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.0.closing.load(Ordering::SeqCst)
    }

    pub(super) fn round_trigger(&self) -> &Trigger {
        &self.0.round_trigger
    }

    /// `memory.high` follows the budget and the limits as they are now.
    pub(super) fn update_memory_high(&self) {
        let bytes = |pages: Pages| pages.get().saturating_mul(4096);
        let (budget, allowed) = {
            let registry = self.registry();
            let allowed = registry.guests();
            let allowed = allowed.map(|(member, _)| (member.id, member.given().map(bytes)));
            (registry.policy().settings().budget, allowed.collect())
        };
        let memory_high = lock(&self.0.memory_high);
        let Some(memory_high) = &*memory_high else { return };
        let followed = memory_high.follow(bytes(budget));
        if let Err(error) = followed.and(memory_high.follow_guests(&allowed)) {
            log::debug!(
                "{} does not follow the budget: {error}",
                memory_high.group().display()
            );
        }
    }

    pub(super) fn enter_cgroup(&self, id: GuestId, pid: u32) {
        if let Some(memory_high) = &*lock(&self.0.memory_high)
            && let Err(error) = memory_high.take_in(id, pid)
        {
            let (name, group) = (self.name(id), memory_high.group().display());
            log::debug!("{name:?} is not in {group}: {error}");
        }
    }

    /// Takes in a report.
    pub(super) fn on_report(&self, id: GuestId, report: Report) {
        let sent_us = report.sent_us;
        self.registry().on_report(id, report);
        let mut statistics = self.statistics();
        statistics.counters.reports += 1;
        // The sender's word: what lies in the future, or was never filled in, is none.
        if let Some(micros) = since_us(sent_us) {
            statistics.handling.note(micros);
        }
    }

    /// Takes in how a guest stands with its limit.
    pub(super) fn on_limit_status(&self, id: GuestId, standing: LimitStatus) {
        if self.registry().on_limit_status(id, standing) {
            self.0.round_trigger.fire();
        }
    }

    /// A connection is over: that of guest `id`, where one was admitted on it.
    pub(super) fn ended(&self, end: &End, id: Option<GuestId>, stream: &Arc<UnixStream>) {
        let Some(id) = id else {
            if let End::Refused(reason) = end {
                self.say(Level::Info, format_args!("a guest was refused: {reason}"));
                self.statistics().counters.refused += 1;
                let reason = reason.clone();
                // It may be gone already, and then hears nothing.
                let _ = push(stream, &FromManager::Refused { reason });
            }
            return;
        };
        if matches!(end, End::Offence(_)) {
            self.cut_off(id);
        }
        let mut registry = self.registry();
        if self.links().ended(id, stream)
            && let Some(process) = registry.process_mut(id)
        {
            process.connected = false;
        }
    }

    /// Ends both connections of a guest whose process broke the rules, and keeps it out for a while.
    pub(super) fn cut_off(&self, id: GuestId) {
        if let Some(process) = self.registry().process_mut(id) {
            process.penalty.offend();
        }
        self.statistics().counters.cut_offs += 1;
        self.links().cut(id);
    }

    /// The system refuses what serving one more guest takes.
    pub(super) fn starved(&self, what: &str, error: &std::io::Error) {
        let mut statistics = self.statistics();
        statistics.counters.starved += 1;
        if statistics.shortages.is_due() {
            log::warn!("{what}: {}", spare::reason(error));
        }
    }

    pub(super) fn links(&self) -> MutexGuard<'_, Links> {
        lock(&self.0.links)
    }

    pub(super) fn open_sockets(&self) -> MutexGuard<'_, Option<OpenSockets>> {
        lock(&self.0.open_sockets)
    }

    pub(super) fn keeper(&self) -> MutexGuard<'_, Keeper> {
        lock(&self.0.keeper)
    }

    pub(super) fn write_trigger(&self) -> &Trigger {
        &self.0.write_trigger
    }

    pub(super) fn telling(&self) -> MutexGuard<'_, ()> {
        lock(&self.0.telling)
    }

    pub(super) fn connection_limits(&self) -> MutexGuard<'_, ConnectionLimits> {
        lock(&self.0.connection_limits)
    }

    pub(super) fn statistics(&self) -> MutexGuard<'_, Statistics> {
        lock(&self.0.statistics)
    }
}

fn start_thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), HostError> {
    let thread = std::thread::Builder::new().name(name.into());
    let started = thread.spawn(body).map_err(levy_protocol::not_started);
    started.map(drop).map_err(HostError::System)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error with all its reasons, on one line.
pub(super) fn with_sources(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |e| e.source())
        .fold(error.to_string(), |text, source| format!("{text}: {source}"))
}
