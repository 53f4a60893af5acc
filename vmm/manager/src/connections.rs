//! The connections on which guests' processes report and are told what to do: one thread listens to them all.
//!
//! It never waits for a guest. What a guest's process has sent is read until nothing is left, what it is told goes out
//! without waiting, and a line without an end ends the connection.
//!
//! A guest is told that it is admitted after the manager's file says so. Guests that come together are written down
//! together.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use allocator::GuestId;
use log::Level;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::admission::Admission;
use super::host::{End, Host};
use super::listening_time::{ListeningTime, Passed};
use super::open_sockets::OpenSockets;
use super::outgoing::push;
use super::rate_limiter::RateLimiter;
use super::spare::{self, Spare};
use levy_protocol::link::{FromManager, FromVmm, Line, LineError, Lines};

/// How long a process may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(2);

/// How long a connection may be silent: reports come once a second.
const SILENCE: Duration = Duration::from_secs(30);

/// Time between two looks at who is silent.
const SWEEP: Duration = Duration::from_millis(250);

/// Delay after rejecting a connection, so that a reconnect loop stays cheap.
const AFTER_REJECTION: Duration = Duration::from_millis(1);

/// Delay where the system has no descriptor for one more connection.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Connections taken in between two looks at those that are there.
const AT_ONCE: usize = 64;

/// The listener's number; connections count on from it.
const LISTENER: u64 = 0;

/// All connections, and the thread that listens to them.
#[derive(Debug)]
pub(super) struct Connections {
    host: Host,
    listener: UnixListener,
    events: OwnedFd,
    open: BTreeMap<u64, Connection>,
    next: u64,
    /// Admitted since the file was last written.
    admitted: Vec<(u64, Admission)>,
    /// No connection is accepted until then.
    paused: Option<Instant>,
    spare: Spare,
    listening_time: ListeningTime,
    /// Time that this thread has listened since the last look at who is silent.
    listened: Duration,
}

#[derive(Debug)]
struct Connection {
    stream: Arc<UnixStream>,
    lines: Lines,
    pid: u32,
    /// Who it is, once it is admitted.
    guest: Option<(GuestId, String)>,
    messages: RateLimiter,
    /// Something was heard since the last look.
    spoke: bool,
    quiet: Duration,
}

impl Connections {
    /// Listens to what comes through `listener`.
    ///
    /// # Errors
    /// When the system has no descriptors to spare.
    pub(super) fn new(host: Host, listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&events, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        Ok(Self {
            host,
            listener,
            events,
            open: BTreeMap::new(),
            next: LISTENER,
            admitted: Vec::new(),
            paused: None,
            spare: Spare::new(),
            listening_time: ListeningTime::since(Instant::now()),
            listened: Duration::ZERO,
        })
    }

    /// Listens until the manager closes.
    pub(super) fn run(mut self) {
        let mut ready = Vec::with_capacity(256);
        while !self.host.is_closing() {
            self.take_fresh_listener();
            self.wait(&mut ready);
            for event in ready.drain(..) {
                match event.data.u64() {
                    LISTENER => self.receive(),
                    number => self.converse(number),
                }
            }
            self.welcome();
            let passed = self.listening_time.look(Instant::now());
            self.sweep(passed);
        }
    }

    /// The socket may have been opened again.
    fn take_fresh_listener(&mut self) {
        let fresh = self
            .host
            .open_sockets()
            .as_mut()
            .and_then(OpenSockets::fresh_guests);
        let Some(listener) = fresh else { return };
        let watched = listener.set_nonblocking(true).and_then(|()| {
            let for_what = EventFlags::IN;
            epoll::add(&self.events, &listener, EventData::new_u64(LISTENER), for_what)
                .map_err(io::Error::from)
        });
        match watched {
            Ok(()) => (self.listener, self.paused) = (listener, None),
            Err(error) => log::error!("the manager cannot watch its socket: {error}"),
        }
    }

    fn wait(&mut self, ready: &mut Vec<epoll::Event>) {
        let now = Instant::now();
        if self.paused.is_some_and(|until| until <= now) {
            self.paused = None;
            self.watch_listener(EventFlags::IN);
        }
        let rest = self.paused.map_or(SWEEP, |until| (until - now).min(SWEEP));
        let rest = Timespec {
            tv_sec: 0,
            tv_nsec: rest.as_nanos() as i64,
        };
        if let Err(error) = epoll::wait(&self.events, spare_capacity(ready), Some(&rest))
            && error != rustix::io::Errno::INTR
        {
            log::error!("the manager cannot wait for its guests: {error}");
            std::thread::sleep(SHORTAGE);
        }
    }

    fn watch_listener(&self, for_what: EventFlags) {
        let changed = epoll::modify(
            &self.events,
            &self.listener,
            EventData::new_u64(LISTENER),
            for_what,
        );
        if let Err(error) = changed {
            log::error!("the manager cannot watch its socket: {error}");
        }
    }

    fn pause_accepting(&mut self, time: Duration) {
        self.watch_listener(EventFlags::empty());
        self.paused = Some(Instant::now() + time);
    }

    /// Accepts connections.
    fn receive(&mut self) {
        for _ in 0..AT_ONCE {
            match self.listener.accept() {
                Ok((stream, _)) => match self.enter(stream) {
                    Ok(true) => {}
                    Ok(false) => return self.pause_accepting(AFTER_REJECTION),
                    // It is gone already, or there was no room for what watching it takes: it comes again.
                    Err(error) => log::debug!("a connection ended before it began: {error}"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.turn_away(&error),
            }
        }
    }

    /// Whether there is room for one more connection of its process.
    fn enter(&mut self, stream: UnixStream) -> io::Result<bool> {
        let pid = rustix::net::sockopt::socket_peercred(&stream)?.pid;
        let pid = pid.as_raw_nonzero().get().cast_unsigned();
        if !self.host.connection_limits().enter(pid) {
            self.host.statistics().counters.crowded += 1;
            return Ok(false);
        }
        stream.set_nonblocking(true)?;
        self.next += 1;
        let for_what = EventFlags::IN | EventFlags::RDHUP;
        if let Err(error) = epoll::add(&self.events, &stream, EventData::new_u64(self.next), for_what) {
            self.host.connection_limits().leave(pid);
            return Err(error.into());
        }
        let connection = Connection {
            stream: Arc::new(stream),
            lines: Lines::default(),
            pid,
            guest: None,
            messages: RateLimiter::of_messages(),
            spoke: false,
            quiet: Duration::ZERO,
        };
        self.open.insert(self.next, connection);
        Ok(true)
    }

    /// The system refuses a descriptor: a process that connects hears why, and comes again.
    fn turn_away(&mut self, error: &io::Error) {
        self.host.starved("a guest's process could not be let in", error);
        let reason = format!(
            "the manager cannot take one more connection: {}",
            spare::reason(error)
        );
        if let Some((stream, _)) = self.spare.lend(|| self.listener.accept().ok()) {
            let _ = push(&stream, &FromManager::Refused { reason });
        }
        self.spare.regain();
        self.pause_accepting(SHORTAGE);
    }

    /// Reads all that a connection has to say.
    fn converse(&mut self, number: u64) {
        while let Some(connection) = self.open.get_mut(&number) {
            let line = connection.lines.next::<FromVmm>(&mut &*connection.stream);
            if matches!(line, Ok(Line::Later)) {
                return;
            }
            connection.spoke = true;
            let said = match &connection.guest {
                None => self.introduce(number, line),
                Some((id, _)) => {
                    let id = *id;
                    hear(&self.host, id, &mut connection.messages, line)
                }
            };
            if let Err(end) = said {
                return self.end(number, &end);
            }
        }
    }

    /// The first line of a connection.
    fn introduce(&mut self, number: u64, line: Result<Line<FromVmm>, LineError>) -> Result<(), End> {
        let hello = match line {
            Ok(Line::Message(FromVmm::Hello(hello))) => hello,
            Ok(Line::End) => return Err(End::Left("it closed the connection before hello".to_owned())),
            Ok(_) => return Err(End::Refused("a connection begins with hello".to_owned())),
            Err(LineError::Io(error)) => return Err(End::Left(error.to_string())),
            Err(error) => return Err(End::Refused(error.to_string())),
        };
        let Some(connection) = self.open.get_mut(&number) else {
            return Ok(());
        };
        let admission = self
            .host
            .admit(&hello, &connection.stream)
            .map_err(End::Refused)?;
        connection.guest = Some((admission.id, hello.name));
        self.admitted.push((number, admission));
        Ok(())
    }

    /// Writes down who was admitted, and tells them.
    fn welcome(&mut self) {
        if self.admitted.is_empty() {
            return;
        }
        if !self.host.keep() {
            // The next manager does not know of them: they are not told that they are admitted, and ask it.
            return;
        }
        for (number, admission) in std::mem::take(&mut self.admitted) {
            let connection = self.open.get(&number);
            let told = connection.map(|connection| self.host.welcome(&connection.stream, admission));
            if matches!(told, Some(Ok(()))) {
                continue;
            }
            // It has hung up meanwhile, or does so now. It stays admitted: its process lives.
            self.host.statistics().counters.refused += 1;
            if let Some(Err(error)) = told {
                self.end(number, &End::Left(format!("it cannot be answered: {error}")));
            }
        }
    }

    /// Counts the silence of those that said nothing while this thread listened.
    fn sweep(&mut self, passed: Passed) {
        if !passed.missed.is_zero() {
            log::warn!("the manager did not run for {:.1} s", passed.missed.as_secs_f64());
            for connection in self.open.values_mut() {
                connection.messages.make_up_for(passed.missed);
            }
        }
        self.listened += passed.listened;
        if self.listened < SWEEP {
            return;
        }
        let listened = std::mem::take(&mut self.listened);
        let mut silent = Vec::new();
        for (&number, connection) in &mut self.open {
            connection.quiet = match std::mem::take(&mut connection.spoke) {
                true => Duration::ZERO,
                false => connection.quiet + listened,
            };
            match &connection.guest {
                None if connection.quiet > INTRODUCTION => {
                    let reason = format!("no hello within {} seconds", INTRODUCTION.as_secs());
                    silent.push((number, End::Refused(reason)));
                }
                Some(_) if connection.quiet > SILENCE => {
                    let reason = format!("it said nothing for {} seconds", SILENCE.as_secs());
                    silent.push((number, End::Left(reason)));
                }
                _ => {}
            }
        }
        for (number, end) in silent {
            self.end(number, &end);
        }
    }

    fn end(&mut self, number: u64, end: &End) {
        let Some(connection) = self.open.remove(&number) else {
            return;
        };
        if let Some((_, name)) = &connection.guest {
            match end {
                End::Left(reason) => {
                    self.host
                        .say(Level::Info, format_args!("{name:?} is away: {reason}"));
                }
                End::Refused(reason) | End::Offence(reason) => {
                    self.host
                        .say(Level::Warn, format_args!("{name:?} is cut off: {reason}"));
                }
            }
        }
        self.host
            .ended(end, connection.guest.map(|(id, _)| id), &connection.stream);
        self.host.connection_limits().leave(connection.pid);
        // Closed for good only where no order is on its way out.
        let _ = epoll::delete(&self.events, &connection.stream);
        let _ = connection.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// What an admitted guest says.
fn hear(
    host: &Host,
    id: GuestId,
    messages: &mut RateLimiter,
    line: Result<Line<FromVmm>, LineError>,
) -> Result<(), End> {
    match line {
        Ok(Line::Message(_) | Line::Unknown) if !messages.take() => {
            Err(End::Offence("it sends more than a guest has to say".to_owned()))
        }
        Ok(Line::Message(FromVmm::Report(report))) => {
            host.on_report(id, report);
            Ok(())
        }
        Ok(Line::Message(FromVmm::LimitStatus(standing))) => {
            host.on_limit_status(id, standing);
            Ok(())
        }
        Ok(Line::Message(FromVmm::Hello(_))) => Err(End::Offence("it introduced itself twice".to_owned())),
        Ok(Line::Unknown | Line::Later) => Ok(()),
        Ok(Line::End) => Err(End::Left("it closed the connection".to_owned())),
        Err(LineError::Io(error)) => Err(End::Left(error.to_string())),
        Err(error) => Err(End::Offence(error.to_string())),
    }
}
