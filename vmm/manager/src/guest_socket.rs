//! The socket on whose connections guests' processes report and are told what to do: one thread listens to them all.
//!
//! It never waits for a guest. What a guest's process has sent is read until nothing is left, what it is told goes out
//! without waiting, and a line without an end ends the connection.
//!
//! A guest is told that it is admitted after the manager's file says so, which another thread writes. Guests that come
//! together are written down together.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use allocator::GuestId;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::host::Host;
use super::manager::{ConnectionId, Effect, Event, Heard, SWEEP};
use super::open_sockets::OpenSockets;
use super::outgoing::push;
use super::spare::{self, Spare};
use levy_protocol::link::{FromManager, FromVmm, Limits, Line, LineError, Lines, Report, Welcome, now_us};

/// Delay after rejecting a connection, so that a reconnect loop stays cheap.
const AFTER_REJECTION: Duration = Duration::from_millis(1);

/// Delay where the system has no descriptor for one more connection.
const SHORTAGE: Duration = Duration::from_millis(100);

/// GuestSocket taken in between two looks at those that are there.
const AT_ONCE: usize = 64;

/// The listener's number; connections count on from it.
const LISTENER: u64 = 0;

/// The number of what says that the file is written.
const PERSISTED: u64 = u64::MAX;

/// All connections, and the thread that listens to them.
#[derive(Debug)]
pub(super) struct GuestSocket {
    host: Host,
    listener: UnixListener,
    events: OwnedFd,
    open: BTreeMap<ConnectionId, Open>,
    next: u64,
    /// No connection is accepted until then.
    paused: Option<Instant>,
    spare: Spare,
}

#[derive(Debug)]
struct Open {
    stream: Arc<UnixStream>,
    lines: Lines,
    /// Which guest it is, once that was told that it is admitted.
    guest: Option<GuestId>,
}

impl GuestSocket {
    /// Listens to what comes through `listener`.
    ///
    /// # Errors
    /// When the system has no descriptors to spare.
    pub(super) fn new(host: Host, listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&events, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        epoll::add(
            &events,
            host.persisted(),
            EventData::new_u64(PERSISTED),
            EventFlags::IN,
        )?;
        Ok(Self {
            host,
            listener,
            events,
            open: BTreeMap::new(),
            next: LISTENER,
            paused: None,
            spare: Spare::new(),
        })
    }

    /// Listens until the manager closes.
    pub(super) fn run(mut self) {
        let mut ready = Vec::with_capacity(256);
        // Begins to count the time.
        self.handle(Event::Listened);
        while !self.host.is_closing() {
            self.take_fresh_listener();
            self.wait(&mut ready);
            for event in ready.drain(..) {
                match event.data.u64() {
                    LISTENER => self.receive(),
                    PERSISTED => self.welcome(),
                    number => self.converse(number),
                }
            }
            self.handle(Event::Listened);
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
        stream.set_nonblocking(true)?;
        if !self.host.state().manager.lets_connect(Instant::now(), pid) {
            return Ok(false);
        }
        self.next += 1;
        let for_what = EventFlags::IN | EventFlags::RDHUP;
        if let Err(error) = epoll::add(&self.events, &stream, EventData::new_u64(self.next), for_what) {
            self.host.state().manager.disconnected(pid);
            return Err(error.into());
        }
        let open = Open {
            stream: Arc::new(stream),
            lines: Lines::default(),
            guest: None,
        };
        self.open.insert(self.next, open);
        self.handle(Event::Connected {
            connection: self.next,
            pid,
        });
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
    fn converse(&mut self, number: ConnectionId) {
        while let Some(open) = self.open.get_mut(&number) {
            let said = match open.lines.next::<FromVmm>(&mut &*open.stream) {
                Ok(Line::Later) => return,
                Ok(Line::Message(FromVmm::Hello(hello))) => {
                    let stream = Arc::clone(&open.stream);
                    let effects = self.host.introduce(number, hello, &stream);
                    self.carry_out(effects);
                    continue;
                }
                Ok(Line::Message(FromVmm::Report(report))) => {
                    self.on_report(number, report);
                    continue;
                }
                Ok(Line::Message(FromVmm::LimitStatus(status))) => Heard::LimitStatus(status),
                Ok(Line::Unknown) => Heard::Unknown,
                Ok(Line::End) => Heard::Closed,
                Err(LineError::Io(error)) => Heard::Broken(error.to_string()),
                Err(error) => Heard::Malformed(error.to_string()),
            };
            self.handle(Event::Said(number, said));
        }
    }

    fn on_report(&mut self, number: ConnectionId, report: Report) {
        // It is known only now that no round holds the lock.
        let mut state = self.host.state();
        // The sender's word: what lies in the future, or was never filled in, is none.
        let delay_us = since_us(report.sent_us);
        let report = Heard::Report(Box::new(report), delay_us);
        let effects = state.handle(Event::Said(number, report));
        drop(state);
        self.carry_out(effects);
    }

    /// Tells those that they are admitted of whom the file says so.
    fn welcome(&mut self) {
        let Some(snapshot) = self.host.persisted().take() else {
            return;
        };
        // A change that is made from here on is told after this, on the link that is taken here.
        let host = self.host.clone();
        let _telling = host.telling();
        self.handle(Event::Persisted(snapshot));
    }

    fn handle(&mut self, event: Event) {
        let effects = self.host.state().handle(event);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Welcome {
                    connection,
                    guest,
                    welcome,
                    limits,
                } => {
                    if let Err(error) = self.tell_admitted(connection, guest, (welcome, limits)) {
                        self.handle(Event::Unwelcomed(connection, error.to_string()));
                    }
                }
                Effect::Reply(connection, message) => {
                    // It may be gone already, and then hears nothing.
                    if let Some(open) = self.open.get(&connection) {
                        let _ = push(&open.stream, &message);
                    }
                }
                Effect::Close(connection) => self.close(connection),
                other => self.host.carry_out(vec![other]),
            }
        }
    }

    fn tell_admitted(
        &mut self,
        connection: ConnectionId,
        guest: GuestId,
        (welcome, limits): (Welcome, Option<Limits>),
    ) -> io::Result<()> {
        let Some(open) = self.open.get_mut(&connection) else {
            return Ok(());
        };
        push(&open.stream, &FromManager::Welcome(welcome))?;
        open.guest = Some(guest);
        self.host.links().take(guest, &open.stream);
        limits.map_or(Ok(()), |limits| push(&open.stream, &FromManager::Limits(limits)))
    }

    fn close(&mut self, connection: ConnectionId) {
        let Some(open) = self.open.remove(&connection) else {
            return;
        };
        if let Some(guest) = open.guest {
            self.host.links().ended(guest, &open.stream);
        }
        // Closed for good only where no order is on its way out.
        let _ = epoll::delete(&self.events, &open.stream);
        let _ = open.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Microseconds since `then`; none where that lies in the future or is not a time.
fn since_us(then: u64) -> Option<u64> {
    now_us().checked_sub(then).filter(|_| then > 0)
}

#[cfg(test)]
mod tests {
    use allocator::Pages;
    use levy_protocol::link::Hello;

    use super::*;
    use crate::host::Sockets;
    use crate::policy::Settings;

    #[test]
    fn a_report_is_known_once_the_manager_has_taken_it_in() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = Sockets::in_dir(dir.path());
        let settings = Settings::new(Pages::from_mib(256));
        let host = Host::open(sockets.clone(), settings, Pages::from_mib(4096)).unwrap();
        let guest = UnixStream::connect(&sockets.guests).unwrap();
        let hello = Hello::new("g", 64 << 20).with_min(16 << 20);
        Lines::send(&mut &guest, &FromVmm::Hello(hello)).unwrap();
        let welcome = Lines::default().next::<FromManager>(&mut &guest);
        assert!(matches!(welcome, Ok(Line::Message(FromManager::Welcome(_)))));
        // The thread that listens waits for more by then: it reads the report while a round holds the lock.
        std::thread::sleep(Duration::from_millis(50));
        let round = host.state();
        let report = Report {
            sent_us: now_us(),
            ..Report::default()
        };
        Lines::send(&mut &guest, &FromVmm::Report(report.clone())).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let waited = now_us() - report.sent_us;
        drop(round);
        while host.counters().reports == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let handling = host.picture().handling.spread();
        assert!(handling.max >= waited, "{handling:?} of {waited}");
        host.close();
    }

    #[test]
    fn a_time_that_lies_in_the_future_is_none() {
        assert_eq!((since_us(0), since_us(u64::MAX)), (None, None));
        assert!(since_us(now_us() - 1000).unwrap() >= 1000);
    }
}
