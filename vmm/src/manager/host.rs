//! The manager at work: the doors where guests' processes knock, their links, and the round once a second.
//!
//! Threads: one at each door, one per connected guest that reads its reports, one per sharing guest that serves its
//! pages, and the caller's own, which runs the rounds. All meet at the [`Roster`]'s lock, which nobody holds while
//! reading or writing a socket; a sharing domain has a lock of its own.
//!
//! # What a hostile process can do
//! Whoever breaks the protocol, or sends more than anybody has to say, is cut off at both doors, counted, and kept out
//! for a while. Nobody waits for it meanwhile: orders go out without waiting, and who leaves them unread is cut off.
//! Its references stay counted until it is dead.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use allocator::{GuestId, Pages};
use page_share::{Dead, GuestProcess};
use rustix::net::SendFlags;

use crate::link::{FromManager, FromVmm, Hello, Line, LineError, Lines, Orders, VERSION, Welcome};
use crate::manager::bell::Bell;
use crate::manager::cgroup::Brake;
use crate::manager::doors::listen;
pub use crate::manager::doors::{Doors, HostError};
use crate::manager::incidents::{Allowance, Crowd, Doings, Handling, HandlingTimes};
use crate::manager::policy::Settings;
use crate::manager::roster::{AdmitError, Roster};
use crate::manager::told::Told;

/// Shortest time between two rounds.
const QUICK_ROUND: Duration = Duration::from_millis(20);

/// Rounds take no more than this part of the time, as a divisor, however often somebody asks for one.
const ROUND_PART: u32 = 20;

/// How long a guest's process may take to say who it is, or to read what it is told.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a connection may be silent: reports come once a second.
const SILENCE: Duration = Duration::from_secs(30);

/// Rest of a door after it has turned somebody away: who knocks without end costs little.
const TURNED_AWAY: Duration = Duration::from_millis(1);

/// The manager of one host. Clones are the same manager.
#[derive(Debug, Clone)]
pub struct Host(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    roster: Mutex<Roster>,
    links: Mutex<Links>,
    crowd: Mutex<Crowd>,
    record: Mutex<Record>,
    doors: Doors,
    closing: AtomicBool,
    brake: Mutex<Option<Brake>>,
    bell: Bell,
}

/// The connections of admitted guests.
#[derive(Debug, Default)]
struct Links {
    /// For reports and orders.
    guests: BTreeMap<GuestId, UnixStream>,
    /// For shared pages.
    pages: BTreeMap<GuestId, UnixStream>,
}

/// What has happened at the doors.
#[derive(Debug, Default)]
struct Record {
    doings: Doings,
    handling: Handling,
}

/// Why a connection is over.
enum End {
    /// In good order, or by an accident.
    Left(String),
    /// The process at the other end broke the rules.
    Offence(String),
}

impl Host {
    /// Opens the doors and lets guests in. `backing` is how much swap and compression may be promised.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn open(doors: Doors, settings: Settings, backing: Pages) -> Result<Self, HostError> {
        let guests = listen(&doors.guests)?;
        let pages = listen(&doors.pages)?;
        let host = Self(Arc::new(Shared {
            roster: Mutex::new(Roster::new(settings, backing)),
            links: Mutex::default(),
            crowd: Mutex::default(),
            record: Mutex::default(),
            doors,
            closing: AtomicBool::new(false),
            bell: Bell::default(),
            brake: Mutex::new(None),
        }));
        let (inside, beside) = (host.clone(), host.clone());
        std::thread::spawn(move || inside.receive(&guests, Self::converse));
        std::thread::spawn(move || beside.receive(&pages, Self::serve_pages));
        Ok(host)
    }

    /// The guests and the policy over them. Hold it briefly: every guest's report waits for it.
    pub fn roster(&self) -> MutexGuard<'_, Roster> {
        self.0.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts guests that are admitted from now on into the control group of `brake`, until this is called
    /// with `None`, which removes the group.
    pub fn brake_with(&self, brake: Option<Brake>) {
        *self.brake() = brake;
    }

    /// Runs rounds until [`Host::close`].
    pub fn run(&self) {
        let mut last = Instant::now();
        let (mut soonest, mut next) = (QUICK_ROUND, Duration::from_secs(1));
        let mut told = Told::default();
        while !self.0.closing.load(Ordering::SeqCst) {
            self.0.bell.wait(last + soonest, last + next.max(soonest));
            let elapsed = last.elapsed();
            last = Instant::now();
            self.bury_the_dead();
            self.set_brake();
            match self.round(elapsed, &mut told) {
                Ok(due) => next = due,
                Err(error) => {
                    next = Duration::from_secs(1);
                    log::error!("no plan this second, the last orders stay: {error}");
                }
            }
            soonest = QUICK_ROUND.max(last.elapsed() * ROUND_PART);
        }
    }

    /// Ends [`Host::run`], closes the doors and hangs up. Guests run on without a manager, ungated, and look for the next
    /// one.
    pub fn close(&self) {
        if self.0.closing.swap(true, Ordering::SeqCst) {
            return;
        }
        for door in [&self.0.doors.guests, &self.0.doors.pages] {
            // Wakes the thread at the door; it then sees that there is nobody to receive any more.
            let _ = UnixStream::connect(door);
            let _ = std::fs::remove_file(door);
        }
        let links = self.links();
        for stream in links.guests.values().chain(links.pages.values()) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// The brake holds whatever the budget is by now.
    fn set_brake(&self) {
        let budget = self.roster().policy().settings().budget;
        if let Some(brake) = &*self.brake()
            && let Err(error) = brake.follow(budget.get() * 4096)
        {
            log::debug!("{} does not follow the budget: {error}", brake.group().display());
        }
    }

    fn brake(&self) -> MutexGuard<'_, Option<Brake>> {
        self.0.brake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells one guest something, and says whether it went out. Never waits: whoever left so much unread that there is
    /// no room is cut off.
    pub fn tell(&self, id: GuestId, message: &FromManager) -> bool {
        let mut links = self.links();
        let Some(stream) = links.guests.get_mut(&id) else {
            return false;
        };
        let sent = push(stream, message);
        if let Err(error) = &sent {
            log::warn!("{id} does not read what it is told, it is cut off: {error}");
            let _ = stream.shutdown(std::net::Shutdown::Both);
            links.guests.remove(&id);
            self.record().doings.cut_offs += 1;
        }
        sent.is_ok()
    }

    /// What has happened at the doors so far.
    pub fn doings(&self) -> Doings {
        self.record().doings
    }

    /// How long the latest reports took from being sent to being known here.
    pub fn handling(&self) -> HandlingTimes {
        self.record().handling.times()
    }

    /// One round; returns when the next one is due.
    fn round(&self, elapsed: Duration, told: &mut Told) -> Result<Duration, allocator::FleetError> {
        let (next, orders): (Duration, Vec<(GuestId, Orders)>) = {
            let mut roster = self.roster();
            let next = roster.round(elapsed)?.next;
            // Whoever waits is answered, whatever the answer.
            for (member, _) in roster.guests().filter(|(member, _)| member.standing.waiting > 0) {
                told.forget(member.id);
            }
            let orders = roster.guests().map(|(member, seat)| (member.id, seat.orders));
            (next, orders.collect())
        };
        told.keep(|id| orders.iter().any(|(guest, _)| *guest == id));
        for (id, orders) in orders {
            if told.is_news(id, &orders) && self.tell(id, &FromManager::Orders(orders)) {
                told.tell(id, orders);
            }
        }
        Ok(next)
    }

    /// A closed connection releases nothing; a dead process does.
    fn bury_the_dead(&self) {
        let mut roster = self.roster();
        let dead: Vec<(GuestId, Dead)> = roster
            .guests()
            .filter_map(|(member, seat)| Some((member.id, seat.process.dead()?)))
            .collect();
        for (id, dead) in dead {
            roster.bury(&dead);
            let mut links = self.links();
            // Its connections may have gone to other processes.
            for stream in [links.guests.remove(&id), links.pages.remove(&id)]
                .iter()
                .flatten()
            {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        }
    }

    fn receive(&self, listener: &UnixListener, attend: fn(&Self, UnixStream, GuestProcess)) {
        for stream in listener.incoming() {
            if self.0.closing.load(Ordering::SeqCst) {
                return;
            }
            match stream {
                Ok(stream) => {
                    // A process that is gone already has nothing to say.
                    let Ok(process) = GuestProcess::of_peer(&stream) else {
                        continue;
                    };
                    let pid = process.pid();
                    if !self.crowd().enter(pid) {
                        self.record().doings.crowded += 1;
                        std::thread::sleep(TURNED_AWAY);
                        continue;
                    }
                    let host = self.clone();
                    std::thread::spawn(move || {
                        attend(&host, stream, process);
                        host.crowd().leave(pid);
                    });
                }
                // Out of files, most likely; the next guest may have more luck once others are gone.
                Err(error) => {
                    log::warn!("a guest's process could not be let in: {error}");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// One guest's page connection: its process must have been admitted before.
    fn serve_pages(&self, stream: UnixStream, process: GuestProcess) {
        let Some((id, domain, peer)) = self.roster().peer(&process) else {
            log::warn!("a process that runs no sharing guest of this manager wants pages; it is turned away");
            return;
        };
        let Ok(kept) = stream.try_clone() else { return };
        // One connection for each guest: who opens another has given the one before up.
        if let Some(before) = self.links().pages.insert(id, kept) {
            let _ = before.shutdown(std::net::Shutdown::Both);
        }
        let Err(error) = page_share::serve(stream, &domain, peer) else {
            return;
        };
        let reason = with_sources(&error);
        log::warn!("{id} shares no more pages until it connects again: {reason}");
        if error.is_offence() {
            self.cut_off(id);
        }
    }

    /// Ends both connections of a guest whose process broke the rules, and keeps it out for a while.
    fn cut_off(&self, id: GuestId) {
        if let Some(seat) = self.roster().seat_mut(id) {
            seat.conduct.offend();
        }
        self.record().doings.cut_offs += 1;
        let links = self.links();
        for stream in [links.guests.get(&id), links.pages.get(&id)]
            .into_iter()
            .flatten()
        {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// One connection from the introduction to its end.
    fn converse(&self, stream: UnixStream, process: GuestProcess) {
        let stream = &stream;
        let mut lines = Lines::default();
        let hello = introduction(stream, &mut lines);
        let admitted = hello.and_then(|hello| Ok((self.welcome(stream, &hello, process)?, hello)));
        let (id, hello) = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => {
                self.record().doings.refused += 1;
                return refuse(stream, &reason);
            }
        };
        log::info!("{:?} is here as {id}", hello.name);
        match self.listen_to(id, stream, &mut lines) {
            End::Left(reason) => log::info!("{:?} is away: {reason}", hello.name),
            End::Offence(reason) => {
                log::warn!("{:?} is cut off: {reason}", hello.name);
                self.cut_off(id);
            }
        }
        let _ = stream.shutdown(std::net::Shutdown::Both);
        self.links().guests.remove(&id);
        if let Some(seat) = self.roster().seat_mut(id) {
            seat.connected = false;
        }
    }

    /// Admits the guest and tells it so.
    fn welcome(&self, stream: &UnixStream, hello: &Hello, process: GuestProcess) -> Result<GuestId, String> {
        // A guest that restarts comes back under its name at once, in another process.
        self.bury_the_dead();
        let pid = process.pid();
        let admit = |roster: &mut Roster| -> Result<_, AdmitError> {
            let id = roster.admit(hello, process)?;
            Ok((id, roster.policy().settings().rebalance))
        };
        // A guest without a version in common was not admitted.
        let version = hello.range().common().map_err(|e| e.to_string())?;
        let (id, rebalance) = admit(&mut self.roster()).map_err(|e| with_sources(&e))?;
        if let Some(brake) = &*self.brake()
            && let Err(error) = brake.take_in(pid)
        {
            log::debug!("{id} is not in {}: {error}", brake.group().display());
        }
        let welcome = FromManager::Welcome(Welcome {
            version,
            newest: VERSION.min(hello.version),
            rebalance_seconds: rebalance.as_secs() as u32,
        });
        match Lines::send(&mut &*stream, &welcome).and_then(|()| stream.try_clone()) {
            Ok(kept) => {
                self.links().guests.insert(id, kept);
                // Without a limit it grows freely.
                self.0.bell.ring();
                Ok(id)
            }
            Err(error) => {
                // It lives, so it keeps its place, with all that it maps, and comes again.
                if let Some(seat) = self.roster().seat_mut(id) {
                    seat.connected = false;
                }
                Err(format!("the guest's process could not be answered: {error}"))
            }
        }
    }

    /// Reads reports until the connection ends; says why it did.
    fn listen_to(&self, id: GuestId, stream: &UnixStream, lines: &mut Lines) -> End {
        let (mut heard, mut allowance) = (Instant::now(), Allowance::of_messages());
        loop {
            match lines.next::<FromVmm>(&mut &*stream) {
                Ok(Line::Message(_) | Line::Unknown) if !allowance.take() => {
                    return End::Offence("it sends more than a guest has to say".to_owned());
                }
                Ok(Line::Message(FromVmm::Report(report))) => {
                    heard = Instant::now();
                    let sent_us = report.sent_us;
                    self.roster().hear(id, report);
                    let mut record = self.record();
                    record.doings.reports += 1;
                    record.handling.note(sent_us);
                }
                Ok(Line::Message(FromVmm::Standing(standing))) => {
                    heard = Instant::now();
                    if self.roster().stand(id, standing) {
                        self.0.bell.ring();
                    }
                }
                Ok(Line::Message(FromVmm::Hello(_))) => {
                    return End::Offence("it introduced itself twice".to_owned());
                }
                // What a newer version says, but it is there.
                Ok(Line::Unknown) => heard = Instant::now(),
                Ok(Line::End) => return End::Left("it closed the connection".to_owned()),
                Ok(Line::Later) if heard.elapsed() > SILENCE => {
                    return End::Left(format!("it said nothing for {} seconds", SILENCE.as_secs()));
                }
                Ok(Line::Later) => {}
                Err(error @ LineError::Io(_)) => return End::Left(error.to_string()),
                Err(error) => return End::Offence(error.to_string()),
            }
        }
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.0.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.0.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends `message` without waiting. What does not fit goes nowhere: half a line would be garbage.
fn push(stream: &UnixStream, message: &FromManager) -> io::Result<()> {
    let line = Lines::encode(message)?;
    let sent = rustix::net::send(stream, &line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    match sent == line.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::WouldBlock.into()),
    }
}

fn introduction(stream: &UnixStream, lines: &mut Lines) -> Result<Hello, String> {
    let broken = |e: io::Error| format!("the connection failed: {e}");
    stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(broken)?;
    let until = Instant::now() + PATIENCE;
    loop {
        match lines.next::<FromVmm>(&mut &*stream) {
            Ok(Line::Message(FromVmm::Hello(hello))) => return Ok(hello),
            Ok(Line::Message(_) | Line::Unknown) => return Err("a connection begins with hello".to_owned()),
            Ok(Line::Later) if Instant::now() < until => {}
            Ok(Line::Later) => return Err(format!("no hello within {} seconds", PATIENCE.as_secs())),
            Ok(Line::End) => return Err("the connection was closed before hello".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn refuse(stream: &UnixStream, reason: &str) {
    log::info!("a guest was refused: {reason}");
    // It may be gone already; then there is nobody to tell.
    let _ = Lines::send(
        &mut &*stream,
        &FromManager::Refused {
            reason: reason.to_owned(),
        },
    );
}

/// An error with all its reasons, on one line.
fn with_sources(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |e| e.source())
        .fold(error.to_string(), |text, source| format!("{text}: {source}"))
}
