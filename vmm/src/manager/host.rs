//! The manager at work: the doors where guests' processes knock, their links, and the round once a second.
//!
//! Threads: one at each door, one per connected guest that reads its reports, one per sharing guest that serves its
//! pages, and the caller's own, which runs the rounds. All meet at the [`Roster`]'s lock, which nobody holds while
//! reading or writing a socket; a sharing domain has a lock of its own.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use allocator::{GuestId, Pages};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::link::{FromManager, FromVmm, Hello, Line, Lines, Orders, Welcome};
use crate::manager::policy::Settings;
use crate::manager::roster::{Process, Roster, Seat};

/// Time between two rounds.
const ROUND: Duration = Duration::from_secs(1);

/// How long a guest's process may take to say who it is, or to read what it is told.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a connection may be silent: reports come once a second.
const SILENCE: Duration = Duration::from_secs(30);

/// The manager of one host. Clones are the same manager.
#[derive(Debug, Clone)]
pub struct Host(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    roster: Mutex<Roster>,
    links: Mutex<BTreeMap<GuestId, UnixStream>>,
    doors: Doors,
    closing: AtomicBool,
}

/// Where guests' processes find their manager: two sockets in its run directory.
#[derive(Debug, Clone)]
pub struct Doors {
    /// For reports and orders.
    pub guests: PathBuf,
    /// For the pages that are shared.
    pub pages: PathBuf,
}

impl Doors {
    /// The sockets of the manager whose run directory is `dir`.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            guests: dir.join("guests.sock"),
            pages: dir.join("pages.sock"),
        }
    }
}

/// Why the manager could not open its door.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Another manager answers there.
    #[error("another manager is running at {0}; use it, stop it, or choose another --run-dir")]
    Running(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen at {path}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
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
            links: Mutex::new(BTreeMap::new()),
            doors,
            closing: AtomicBool::new(false),
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

    /// Runs rounds until [`Host::close`].
    pub fn run(&self) {
        let mut last = Instant::now();
        while !self.0.closing.load(Ordering::SeqCst) {
            std::thread::sleep(ROUND.saturating_sub(last.elapsed()));
            let elapsed = last.elapsed();
            last = Instant::now();
            self.bury_the_dead();
            if let Err(error) = self.round(elapsed) {
                log::error!("no plan this second, the last orders stay: {error}");
            }
        }
    }

    /// Ends [`Host::run`] and closes the doors. Guests run on without a manager.
    pub fn close(&self) {
        if self.0.closing.swap(true, Ordering::SeqCst) {
            return;
        }
        for door in [&self.0.doors.guests, &self.0.doors.pages] {
            // Wakes the thread at the door; it then sees that there is nobody to receive any more.
            let _ = UnixStream::connect(door);
            let _ = std::fs::remove_file(door);
        }
    }

    /// Tells one guest something, and says whether it went out. Whoever does not read is cut off.
    pub fn tell(&self, id: GuestId, message: &FromManager) -> bool {
        let mut links = self.links();
        let Some(stream) = links.get_mut(&id) else {
            return false;
        };
        let sent = Lines::send(stream, message);
        if let Err(error) = &sent {
            log::warn!("{id} does not read what it is told, it is cut off: {error}");
            let _ = stream.shutdown(std::net::Shutdown::Both);
            links.remove(&id);
        }
        sent.is_ok()
    }

    fn round(&self, elapsed: Duration) -> Result<(), allocator::FleetError> {
        let orders: Vec<(GuestId, Orders)> = {
            let mut roster = self.roster();
            roster.round(elapsed)?;
            roster
                .guests()
                .map(|(member, seat)| (member.id, seat.orders))
                .collect()
        };
        for (id, orders) in orders {
            self.tell(id, &FromManager::Orders(orders));
        }
        Ok(())
    }

    /// A closed connection releases nothing; a dead process does.
    fn bury_the_dead(&self) {
        let mut roster = self.roster();
        let dead: Vec<GuestId> = roster
            .guests()
            .filter(|(_, seat)| is_dead(seat))
            .map(|(member, _)| member.id)
            .collect();
        for id in dead {
            roster.bury(id);
            self.links().remove(&id);
        }
    }

    fn receive(&self, listener: &UnixListener, attend: fn(&Self, UnixStream)) {
        for stream in listener.incoming() {
            if self.0.closing.load(Ordering::SeqCst) {
                return;
            }
            match stream {
                Ok(stream) => {
                    let host = self.clone();
                    std::thread::spawn(move || attend(&host, stream));
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
    fn serve_pages(&self, stream: UnixStream) {
        let caller = peer(&stream)
            .ok()
            .and_then(|process| self.roster().peer(process.pid));
        let Some((id, domain, peer)) = caller else {
            log::warn!("a process that runs no sharing guest of this manager wants pages; it is turned away");
            return;
        };
        let attached = |guest| {
            if let Some(place) = self.roster().seat_mut(id).and_then(|seat| seat.sharing.as_mut()) {
                place.guest = Some(guest);
            }
        };
        if let Err(error) = page_share::serve(stream, &domain, peer, attached) {
            log::warn!(
                "{id} shares no more pages until it connects again: {}",
                with_sources(&error)
            );
        }
    }

    /// One connection from the introduction to its end.
    fn converse(&self, stream: UnixStream) {
        let stream = &stream;
        let mut lines = Lines::default();
        let hello = match introduction(stream, &mut lines) {
            Ok(hello) => hello,
            Err(reason) => return refuse(stream, &reason),
        };
        let id = match self.welcome(stream, &hello) {
            Ok(id) => id,
            Err(reason) => return refuse(stream, &reason),
        };
        log::info!("{:?} is here as {id}", hello.name);
        let reason = self.listen_to(id, stream, &mut lines);
        log::info!("{:?} is cut off: {reason}", hello.name);
        let _ = stream.shutdown(std::net::Shutdown::Both);
        self.links().remove(&id);
        if let Some(seat) = self.roster().seat_mut(id) {
            seat.connected = false;
        }
    }

    /// Admits the guest and tells it so.
    fn welcome(&self, stream: &UnixStream, hello: &Hello) -> Result<GuestId, String> {
        let process = peer(stream).map_err(|e| format!("the manager cannot tell who is calling: {e}"))?;
        let (id, rebalance) = {
            let mut roster = self.roster();
            let id = roster.admit(hello, process).map_err(|e| with_sources(&e))?;
            (id, roster.policy().settings().rebalance)
        };
        let welcome = FromManager::Welcome(Welcome {
            rebalance_seconds: rebalance.as_secs() as u32,
        });
        match Lines::send(&mut &*stream, &welcome).and_then(|()| stream.try_clone()) {
            Ok(kept) => {
                self.links().insert(id, kept);
                Ok(id)
            }
            Err(error) => {
                self.roster().bury(id);
                Err(format!("the guest's process could not be answered: {error}"))
            }
        }
    }

    /// Reads reports until the connection ends; says why it did.
    fn listen_to(&self, id: GuestId, stream: &UnixStream, lines: &mut Lines) -> String {
        let mut heard = Instant::now();
        loop {
            match lines.next::<FromVmm>(&mut &*stream) {
                Ok(Line::Message(FromVmm::Report(report))) => {
                    heard = Instant::now();
                    self.roster().hear(id, report);
                }
                Ok(Line::Message(FromVmm::Hello(_))) => return "it introduced itself twice".to_owned(),
                Ok(Line::End) => return "it closed the connection".to_owned(),
                Ok(Line::Later) if heard.elapsed() > SILENCE => {
                    return format!("it said nothing for {} seconds", SILENCE.as_secs());
                }
                Ok(Line::Later) => {}
                Err(error) => return error.to_string(),
            }
        }
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<GuestId, UnixStream>> {
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens at `path`; a socket that nobody answers at is left over and replaced.
fn listen(path: &Path) -> Result<UnixListener, HostError> {
    let failed = |source| HostError::Listen {
        path: path.to_owned(),
        source,
    };
    if UnixStream::connect(path).is_ok() {
        return Err(HostError::Running(path.to_owned()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    UnixListener::bind(path).map_err(failed)
}

fn introduction(stream: &UnixStream, lines: &mut Lines) -> Result<Hello, String> {
    let broken = |e: io::Error| format!("the connection failed: {e}");
    stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(broken)?;
    let until = Instant::now() + PATIENCE;
    loop {
        match lines.next::<FromVmm>(&mut &*stream) {
            Ok(Line::Message(FromVmm::Hello(hello))) => return Ok(hello),
            Ok(Line::Message(_)) => return Err("a connection begins with hello".to_owned()),
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

/// The process at the other end, by the kernel's word.
fn peer(stream: &UnixStream) -> io::Result<Process> {
    let credentials = rustix::net::sockopt::socket_peercred(stream)?;
    let handle = pidfd_open(credentials.pid, PidfdFlags::empty())?;
    Ok(Process {
        pid: credentials.pid.as_raw_nonzero().get().cast_unsigned(),
        handle,
    })
}

fn is_dead(seat: &Seat) -> bool {
    let mut handle = [PollFd::new(&seat.process, PollFlags::IN)];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut handle, Some(&now)), Ok(1..))
}

/// An error with all its reasons, on one line.
fn with_sources(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |e| e.source())
        .fold(error.to_string(), |text, source| format!("{text}: {source}"))
}
