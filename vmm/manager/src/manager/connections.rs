//! Connections of guests' processes: who speaks on each, how much, and for how long it has been silent.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use allocator::GuestId;
use log::Level;

use super::event::{ConnectionId, Effect, Heard};
use super::{Manager, Snapshot, with_sources};
use crate::kept::KeptGuest;
use crate::listening_time::Passed;
use crate::rate_limiter::RateLimiter;
use crate::registry::Applicant;
use levy_protocol::link::{FromManager, Hello, VERSION, Welcome};

/// How long a process may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(2);

/// How long a connection may be silent: reports come once a second.
const SILENCE: Duration = Duration::from_secs(30);

/// Time in which the manager did not run that the log names; shorter ones are a matter of every busy machine.
const WORTH_A_WORD: Duration = Duration::from_millis(100);

/// Time between two looks at who is silent.
pub(crate) const SWEEP: Duration = Duration::from_millis(250);

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: BTreeMap<ConnectionId, Connection>,
    /// Admitted, and not written down yet.
    admitted: Vec<Admitted>,
    /// How many were admitted so far.
    pub(super) admissions: u64,
    /// Guests as they are written down.
    pub(super) written: Vec<KeptGuest>,
    /// Time listened since the last look at who is silent.
    listened: Duration,
}

#[derive(Debug)]
struct Connection {
    pid: u32,
    /// Who it is, once it is admitted.
    guest: Option<(GuestId, String)>,
    messages: RateLimiter,
    /// Something was read since the last look.
    spoke: bool,
    quiet: Duration,
}

/// A guest that is admitted and does not know it yet.
#[derive(Debug)]
struct Admitted {
    /// So many were admitted with it.
    number: u64,
    connection: ConnectionId,
    guest: GuestId,
    welcome: Welcome,
    /// What it believes about itself.
    hello: Hello,
}

/// Why a connection is over.
#[derive(Debug)]
enum End {
    /// In good order, or by an accident.
    Left(String),
    /// Its process was not admitted.
    Refused(String),
    /// The process at the other end broke the rules.
    Offence(String),
}

impl Manager {
    pub(super) fn on_connected(&mut self, now: Instant, connection: ConnectionId, pid: u32) {
        let new = Connection {
            pid,
            guest: None,
            messages: RateLimiter::of_messages(now),
            spoke: false,
            quiet: Duration::ZERO,
        };
        self.connections.open.insert(connection, new);
    }

    pub(super) fn on_introduced(
        &mut self,
        now: Instant,
        number: ConnectionId,
        applicant: Result<Applicant, String>,
        hung_up: bool,
    ) {
        let Some(connection) = self.connections.open.get_mut(&number) else {
            return;
        };
        connection.spoke = true;
        let admitted = match connection.guest {
            Some(_) => Err(End::Offence("it introduced itself twice".to_owned())),
            None => applicant
                .and_then(|applicant| self.admit(now, number, applicant, hung_up))
                .map_err(End::Refused),
        };
        if let Err(end) = admitted {
            self.end(now, number, &end);
        }
    }

    fn admit(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        applicant: Applicant,
        hung_up: bool,
    ) -> Result<(), String> {
        let (hello, process) = (applicant.hello.clone(), applicant.process);
        // Its connection before this one may be closed, and that not be seen yet.
        let left = self.registry.find(&hello.name).filter(|_| hung_up);
        if let Some(known) = left.and_then(|guest| self.registry.process_mut(guest)) {
            known.connected = false;
        }
        let admitted = self.registry.admit(now, applicant);
        self.pass_remarks_on();
        let guest = admitted.map_err(|error| self.registry.named_with(&hello.name, &with_sources(&error)))?;
        let version = hello.range().common().map_err(|error| with_sources(&error))?;
        let rebalance = self.registry.policy().settings().rebalance;
        let welcome = Welcome {
            version,
            newest: VERSION.min(hello.version),
            rebalance_seconds: rebalance.as_secs() as u32,
        };
        if let Some(known) = self.connections.open.get_mut(&connection) {
            known.guest = Some((guest, hello.name.clone()));
        }
        self.connections.admissions += 1;
        let admitted = Admitted {
            number: self.connections.admissions,
            connection,
            guest,
            welcome,
            hello,
        };
        self.effects.push(Effect::Watch(guest, process));
        // One that returns as it is written down does not wait for the disk.
        let kept = self.registry.kept_guest(guest);
        if kept.is_some_and(|kept| self.connections.written.contains(&kept)) {
            self.welcome(now, admitted);
        } else {
            self.connections.admitted.push(admitted);
            self.effects.push(Effect::Persist);
        }
        Ok(())
    }

    pub(super) fn on_persisted(&mut self, now: Instant, snapshot: Snapshot) {
        self.connections.written = snapshot.guests;
        let admitted = std::mem::take(&mut self.connections.admitted);
        let is_written = |admitted: &Admitted| admitted.number <= snapshot.admissions;
        let (told, later): (Vec<_>, Vec<_>) = admitted.into_iter().partition(is_written);
        self.connections.admitted = later;
        for admitted in told {
            self.welcome(now, admitted);
        }
    }

    /// Tells a guest that it is admitted, if it is still there.
    fn welcome(&mut self, now: Instant, admitted: Admitted) {
        let (connection, guest) = (admitted.connection, admitted.guest);
        if !self.connections.open.contains_key(&connection) {
            // It has hung up meanwhile. It stays admitted: its process lives.
            self.statistics.counters.refused += 1;
            return;
        }
        if let Some(process) = self.registry.process_mut(guest) {
            if process.penalty.barred(now).is_some() {
                // Its other connection broke the rules meanwhile.
                let end = End::Left("its process broke the protocol".to_owned());
                self.end(now, connection, &end);
                return;
            }
            (process.connected, process.connection) = (true, Some(connection));
        }
        let limits = self
            .registry
            .limits(guest)
            .filter(|limits| !limits.are_of(&admitted.hello));
        self.effects.push(Effect::Welcome {
            connection,
            guest,
            welcome: admitted.welcome,
            limits,
        });
        self.say(
            now,
            Level::Info,
            format_args!("{:?} is here", admitted.hello.name),
        );
        // Without a limit it grows freely.
        self.hurry();
    }

    pub(super) fn on_unwelcomed(&mut self, now: Instant, connection: ConnectionId, error: &str) {
        self.statistics.counters.refused += 1;
        let end = End::Left(format!("it cannot be answered: {error}"));
        self.end(now, connection, &end);
    }

    pub(super) fn on_said(&mut self, now: Instant, number: ConnectionId, said: Heard) {
        // What was sent while the manager did not run is read before the look at who is silent.
        self.listen(now);
        let Some(connection) = self.connections.open.get_mut(&number) else {
            return;
        };
        connection.spoke = true;
        let heard = match &connection.guest {
            None => Err(before_hello(said)),
            Some((guest, _)) => {
                let (guest, messages) = (*guest, &mut connection.messages);
                let is_message = matches!(said, Heard::Report(..) | Heard::LimitStatus(_) | Heard::Unknown);
                match !is_message || messages.take(now) {
                    true => self.on_message(guest, said),
                    false => Err(End::Offence("it sends more than a guest has to say".to_owned())),
                }
            }
        };
        if let Err(end) = heard {
            self.end(now, number, &end);
        }
    }

    /// What an admitted guest says.
    fn on_message(&mut self, guest: GuestId, said: Heard) -> Result<(), End> {
        match said {
            Heard::Report(report, delay_us) => {
                match self.registry.on_report(guest, *report) {
                    true => self.statistics.counters.reports += 1,
                    false => self.statistics.counters.impossible += 1,
                }
                if let Some(micros) = delay_us {
                    self.statistics.handling.note(micros);
                }
            }
            Heard::LimitStatus(status) => {
                if self.registry.on_limit_status(guest, status) {
                    self.hurry();
                }
            }
            Heard::Unknown => {}
            Heard::Closed => return Err(End::Left("it closed the connection".to_owned())),
            Heard::Broken(error) => return Err(End::Left(error)),
            Heard::Malformed(error) => return Err(End::Offence(error)),
        }
        Ok(())
    }

    /// Makes up for time in which the manager did not run, and counts that in which it listened.
    fn listen(&mut self, now: Instant) {
        let Passed { listened, missed } = self.listening.look(now);
        if !missed.is_zero() {
            if missed >= WORTH_A_WORD {
                let line = format!("the manager did not run for {:.1} s", missed.as_secs_f64());
                self.effects.push(Effect::Log(Level::Warn, line));
            }
            for connection in self.connections.open.values_mut() {
                connection.messages.make_up_for(missed);
            }
        }
        self.connections.listened += listened;
    }

    /// Counts the silence of those that said nothing while they were listened to.
    pub(super) fn on_listened(&mut self, now: Instant) {
        self.listen(now);
        if self.connections.listened >= SWEEP {
            let listened = std::mem::take(&mut self.connections.listened);
            for (number, end) in self.connections.silent(listened) {
                self.end(now, number, &end);
            }
        }
    }

    /// A connection is over.
    fn end(&mut self, now: Instant, number: ConnectionId, end: &End) {
        let Some(connection) = self.connections.open.remove(&number) else {
            return;
        };
        match &connection.guest {
            Some((guest, name)) => {
                match end {
                    End::Left(reason) => {
                        self.say(now, Level::Info, format_args!("{name:?} is away: {reason}"));
                    }
                    End::Refused(reason) | End::Offence(reason) => {
                        self.say(now, Level::Warn, format_args!("{name:?} is cut off: {reason}"));
                    }
                }
                if matches!(end, End::Offence(_)) {
                    self.cut_off(now, *guest);
                }
                if let Some(process) = self.registry.process_mut(*guest)
                    && process.connection.is_none_or(|current| current == number)
                {
                    (process.connected, process.connection) = (false, None);
                }
            }
            None => {
                if let End::Refused(reason) = end {
                    self.say(now, Level::Info, format_args!("a guest was refused: {reason}"));
                    self.statistics.counters.refused += 1;
                    let reason = reason.clone();
                    self.effects
                        .push(Effect::Reply(number, FromManager::Refused { reason }));
                }
            }
        }
        self.connection_limits.leave(connection.pid);
        self.effects.push(Effect::Close(number));
    }

    /// Ends both connections of a guest whose process broke the rules, and keeps it out for a while.
    pub(super) fn cut_off(&mut self, now: Instant, guest: GuestId) {
        if let Some(process) = self.registry.process_mut(guest) {
            process.penalty.offend(now);
        }
        self.statistics.counters.cut_offs += 1;
        self.effects.push(Effect::HangUp(guest));
    }
}

impl Connections {
    /// Those that have been silent for too long, after `listened` more.
    fn silent(&mut self, listened: Duration) -> Vec<(ConnectionId, End)> {
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
        silent
    }
}

/// What ends a connection that does not begin with hello.
fn before_hello(said: Heard) -> End {
    match said {
        Heard::Closed => End::Left("it closed the connection before hello".to_owned()),
        Heard::Broken(error) => End::Left(error),
        Heard::Malformed(error) => End::Refused(error),
        Heard::Report(..) | Heard::LimitStatus(_) | Heard::Unknown => {
            End::Refused("a connection begins with hello".to_owned())
        }
    }
}
