//! The manager at work: it finds out what happens, asks the [`Manager`], and does what that says.
//!
//! Threads: one that listens to all guests (`guest_socket`), one at the socket for pages and one more for each sharing
//! guest, which serves its pages (`pages`), one that writes down who has ended (`keeping`), and the caller's own, which
//! carries out the rounds (`rounds`). All meet at one lock, which no thread holds while it reads or writes a socket or
//! asks the kernel about memory; a sharing domain has a lock of its own.
//!
//! # What a hostile process can do
//! A process that breaks the protocol, or sends more than a guest has to say, is cut off at both sockets, counted, and
//! kept out for a while. No thread waits for it meanwhile: orders go out without waiting, and a process that leaves them
//! unread is cut off. Its references stay counted until it is dead.

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use allocator::{GuestId, Pages};
use page_share::LocalManager;

use super::cgroup::{self, MemoryHigh};
use super::guest_socket::GuestSocket;
use super::keeper::Keeper;
use super::kept::{KeptGuest, KeptSettings};
use super::links::Links;
use super::lock::Lock;
use super::manager::{Change, Effect, Event, Manager};
use super::open_sockets::{Lost, OpenSockets};
use super::outgoing::push;
use super::persisted::Persisted;
use super::picture::Picture;
use super::policy::Settings;
use super::processes::Processes;
use super::registry::{ChangeError, Registry};
pub use super::sockets::{HostError, Sockets, kept_in};
use super::spare;
use super::statistics::SocketCounters;
use super::survey::Survey;
use super::trigger::Trigger;
use levy_protocol::link::FromManager;
use levy_protocol::process_memory::ProcessMemory;

/// The manager of one host. Clones are the same manager.
#[derive(Debug, Clone)]
pub struct Host(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Lock<State>,
    links: Lock<Links>,
    keeper: Lock<Keeper>,
    /// Why the last attempt to write failed, if it did.
    unkept: Lock<Option<String>>,
    persisted: Persisted,
    /// Fired when what is kept is out of date.
    write_trigger: Trigger,
    /// Held while a guest is told its limits: it hears the latest last.
    telling: Lock<()>,
    sockets: Sockets,
    /// None once it closes.
    open_sockets: Lock<Option<OpenSockets>>,
    lost: AtomicBool,
    closing: AtomicBool,
    memory_high: Lock<Option<MemoryHigh>>,
    round_trigger: Trigger,
}

/// What is decided, and what the kernel has of it: both change together.
#[derive(Debug)]
pub(super) struct State {
    pub(super) manager: Manager,
    pub(super) processes: Processes,
}

/// The registry, locked.
#[derive(Debug)]
pub struct LockedRegistry<'a>(MutexGuard<'a, State>);

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

impl Deref for LockedRegistry<'_> {
    type Target = Registry;

    fn deref(&self) -> &Registry {
        self.0.manager.registry()
    }
}

impl State {
    /// What is to be done for `event`, of which everything is done already that changes this.
    pub(super) fn handle(&mut self, event: Event) -> Vec<Effect> {
        let effects = self.manager.handle(Instant::now(), event);
        for effect in &effects {
            match effect {
                Effect::Watch(guest, process) => self.processes.watch(*guest, *process),
                Effect::Forget(guest, left) => self.processes.forget(*guest, left.as_ref()),
                _ => {}
            }
        }
        self.processes.drop_found();
        effects
    }

    /// Asks what the guests' processes hold, before any other thread is there.
    fn measure(&mut self, memory: &mut ProcessMemory) -> Vec<Effect> {
        let survey = Survey {
            processes: self.manager.registry().survey(),
            domains: Vec::new(),
        };
        self.handle(Event::Measured(survey.measure(memory)))
    }
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
        let mut state = State {
            manager: Manager::new(Instant::now(), start.settings, start.backing),
            processes: Processes::default(),
        };
        let (keeper, before) = Keeper::open(&sockets.kept, start.kept)?;
        // What guests hold that are taken back, and what this process does, counts from the beginning.
        let mut memory = ProcessMemory::default();
        let mut effects = state.measure(&mut memory);
        if let Some(before) = before {
            let processes: Vec<_> = before.guests.iter().map(KeptGuest::process).collect();
            let fates = state.processes.look(&processes);
            effects.extend(state.handle(Event::TookOver(before, fates)));
            effects.extend(state.measure(&mut memory));
            let guests = state.manager.registry().guests();
            cgroup::let_go(&guests.map(|(_, process)| process.id.pid).collect::<Vec<_>>());
        }
        let host = Self(Arc::new(Shared {
            state: Lock::new(state),
            links: Lock::default(),
            keeper: Lock::new(keeper),
            unkept: Lock::default(),
            persisted: Persisted::new().map_err(HostError::System)?,
            write_trigger: Trigger::default(),
            telling: Lock::default(),
            sockets,
            open_sockets: Lock::default(),
            lost: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            round_trigger: Trigger::default(),
            memory_high: Lock::default(),
        }));
        host.carry_out(effects);
        let listeners = open.fresh_guests().zip(open.fresh_pages());
        let (guests, pages) = listeners.expect("both were just opened");
        *host.open_sockets() = Some(open);
        host.write_trigger().fire();
        let guests = GuestSocket::new(host.clone(), guests).map_err(HostError::System)?;
        let [beside, behind] = [host.clone(), host.clone()];
        start_thread("guests", move || guests.run())
            .and_then(|()| start_thread("pages", move || beside.receive_pages(pages)))
            .and_then(|()| start_thread("keeper", move || behind.keep_when_outdated()))
            .inspect_err(|_| host.close())?;
        Ok(host)
    }

    /// The guests and the policy over them. Hold it briefly: every guest's report waits for it.
    pub fn registry(&self) -> LockedRegistry<'_> {
        LockedRegistry(self.state())
    }

    /// The sharing domains by name.
    pub fn domains(&self) -> BTreeMap<String, LocalManager> {
        self.state().processes.domains().clone()
    }

    /// A copy of what people want to see, to be looked at without the lock.
    pub fn picture(&self) -> Picture {
        let state = self.state();
        Picture::of(&state.manager, state.processes.domains().clone())
    }

    /// Changes what an operator wants changed. Guests are not told, nor is it kept for the next manager.
    ///
    /// # Errors
    /// When limits contradict each other or the budget; nothing has changed then.
    pub fn change(&self, change: Change) -> Result<(), ChangeError> {
        self.state().manager.change(change)
    }

    /// See [`Registry::allow_several_in_one_process`].
    pub fn allow_several_in_one_process(&self) {
        self.state().manager.allow_several_in_one_process();
    }

    /// Puts all guests, those that are admitted from now on too, into the control group of `memory_high`, until this is called
    /// with `None`, which removes the group.
    pub fn use_cgroup(&self, memory_high: Option<MemoryHigh>) {
        *self.0.memory_high.lock() = memory_high;
        // Asked after that: a guest that is admitted from here on enters by itself.
        let processes = self.registry().survey();
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
        let unsent = {
            let mut links = self.links();
            match links.of(id).map(|stream| (push(&stream, message), stream)) {
                Some((Ok(()), _)) => return true,
                Some((Err(error), stream)) => {
                    let _ = stream.shutdown(Shutdown::Both);
                    links.ended(id, &stream);
                    Some(error.to_string())
                }
                None => None,
            }
        };
        self.handle(Event::Unsent(id, unsent));
        false
    }

    /// What has happened at the sockets so far.
    pub fn counters(&self) -> SocketCounters {
        self.state().manager.statistics().counters
    }

    /// Kills one guest's process.
    ///
    /// # Errors
    /// When it cannot be killed, or is gone already.
    pub(super) fn kill(&self, id: GuestId) -> io::Result<()> {
        self.state().processes.kill(id)
    }

    /// Whether process `pid` runs a guest that was admitted here.
    pub(super) fn runs_guest(&self, pid: u32) -> bool {
        self.state().processes.runs_guest(pid)
    }

    /// Takes in what happened, and does what is to be done for it.
    pub(super) fn handle(&self, event: Event) {
        let effects = self.state().handle(event);
        self.carry_out(effects);
    }

    /// Does what is to be done.
    pub(super) fn carry_out(&self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Watch(guest, process) => self.enter_cgroup(guest, process.pid),
                Effect::Forget(guest, _) => self.links().remove(guest),
                Effect::Persist => self.0.write_trigger.fire(),
                Effect::Send(guest, message) => {
                    self.tell(guest, &message);
                }
                Effect::HangUp(guest) => self.links().cut(guest),
                Effect::StartEarlier => self.0.round_trigger.fire(),
                Effect::FollowBudget(budget, guests) => self.follow_budget(budget, &guests),
                Effect::LimitPools(room, old_pools) => {
                    let domains: Vec<LocalManager> = self.domains().into_values().collect();
                    room.divide(&domains, old_pools);
                }
                Effect::Log(level, line) => log::log!(level, "{line}"),
                // By the thread that listens to guests, and the one of the rounds: no other event leads to them.
                Effect::Welcome { .. } | Effect::Reply(..) | Effect::Close(_) | Effect::Measure(..) => {}
            }
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.0.closing.load(Ordering::SeqCst)
    }

    pub(super) fn round_trigger(&self) -> &Trigger {
        &self.0.round_trigger
    }

    fn follow_budget(&self, budget: u64, guests: &BTreeMap<GuestId, Option<u64>>) {
        let memory_high = self.0.memory_high.lock();
        let Some(memory_high) = &*memory_high else { return };
        let followed = memory_high.follow(budget);
        if let Err(error) = followed.and(memory_high.follow_guests(guests)) {
            log::debug!(
                "{} does not follow the budget: {error}",
                memory_high.group().display()
            );
        }
    }

    fn enter_cgroup(&self, id: GuestId, pid: u32) {
        if let Some(memory_high) = &*self.0.memory_high.lock()
            && let Err(error) = memory_high.take_in(id, pid)
        {
            let name = self.registry().named(&id.to_string());
            log::debug!("{name:?} is not in {}: {error}", memory_high.group().display());
        }
    }

    /// The system refuses what serving one more guest takes.
    pub(super) fn starved(&self, what: &str, error: &io::Error) {
        self.handle(Event::Starved {
            what: what.to_owned(),
            reason: spare::reason(error),
        });
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }

    pub(super) fn links(&self) -> MutexGuard<'_, Links> {
        self.0.links.lock()
    }

    pub(super) fn open_sockets(&self) -> MutexGuard<'_, Option<OpenSockets>> {
        self.0.open_sockets.lock()
    }

    pub(super) fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.0.keeper.lock()
    }

    pub(super) fn last_failure(&self) -> MutexGuard<'_, Option<String>> {
        self.0.unkept.lock()
    }

    pub(super) fn persisted(&self) -> &Persisted {
        &self.0.persisted
    }

    pub(super) fn write_trigger(&self) -> &Trigger {
        &self.0.write_trigger
    }

    pub(super) fn telling(&self) -> MutexGuard<'_, ()> {
        self.0.telling.lock()
    }
}

fn start_thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), HostError> {
    let thread = std::thread::Builder::new().name(name.into());
    let started = thread.spawn(body).map_err(levy_protocol::not_started);
    started.map(drop).map_err(HostError::System)
}

#[cfg(test)]
mod tests;
