//! The manager's end of a connection.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::descriptors::send_with_fds;
use crate::domain::Domain;
use crate::local::LocalManager;
use crate::page::{GuestId, Slot};
use crate::port::{
    Answer, Invalid, Offer, PUBLISH_BATCH, PortError, Publication, REPORT_BATCH, Reconnected, Refusal,
    Session,
};
use crate::wire::{Direction, HEADER, Header, Hello, Reply, Request, Welcome, WireError};

/// Part of a CPU that answering one peer may take, for long: a good 90,000 published pages a second.
const CPU_SHARE: f64 = 0.25;

/// How far a peer may be ahead of its share, and what it can save up.
const CPU_BURST: Duration = Duration::from_secs(1);

/// Pages that were not what they were sent as, before anybody asks how many were right.
const MISMATCHES: u64 = 256;

/// Who is at the other end of a connection, as the manager knows without asking: from the process it started, or
/// from SO_PEERCRED.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Pages that its guest has.
    pub pages: u32,
    /// The guest's number, when this process has been served before by this manager.
    pub guest: Option<GuestId>,
}

/// Why a connection ended before its time. Nothing was released: that takes the process's death.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The peer said something that is no message.
    #[error("the guest's process sent a malformed message")]
    Wire(#[from] WireError),
    /// The peer spoke out of turn, or claimed to be who it is not.
    #[error("the guest's process broke the protocol: {0}")]
    Protocol(&'static str),
    /// The manager has stopped.
    #[error("the manager has stopped")]
    Stopped,
    /// The guest cannot be attached.
    #[error("cannot attach the guest")]
    Attach(#[source] PortError),
    /// The connection failed.
    #[error("the connection to the guest's process failed")]
    Io(#[from] io::Error),
}

impl ServeError {
    /// Whether the peer broke the rules, as no sound process does.
    pub fn is_offence(&self) -> bool {
        matches!(
            self,
            Self::Wire(_) | Self::Protocol(_) | Self::Attach(PortError::Invalid(_))
        )
    }
}

/// Serves one connection until the peer closes it. `attached` is called once, with the guest's number, before the peer
/// learns of it: from then on its death must be told to [`Domain::detach`].
///
/// # Errors
/// [`ServeError`].
pub fn serve(
    mut stream: UnixStream,
    manager: &LocalManager,
    peer: Peer,
    attached: impl FnOnce(GuestId),
) -> Result<(), ServeError> {
    let mut buffer = Vec::new();
    let Some((header, payload)) = receive_request(&mut stream, &mut buffer)? else {
        return Ok(());
    };
    let Request::Hello(hello) = Request::decode(header, payload)? else {
        return Err(ServeError::Protocol("its first message was not a hello"));
    };
    if hello.pages != peer.pages {
        return Err(ServeError::Protocol(
            "it named another memory size than its guest has",
        ));
    }
    let held = receive_held(&mut stream, &mut buffer, hello)?;
    let admitted = manager.with(|domain| admit(domain, peer, hello, &held));
    let admitted = admitted.ok_or(ServeError::Stopped)?.map_err(ServeError::Attach)?;
    let guest = admitted.session.guest;
    attached(guest);
    welcome(&stream, admitted)?;
    let (mut scratch, mut pace) = (Scratch::default(), ServePace::new());
    while let Some((header, payload)) = receive_request(&mut stream, &mut buffer)? {
        let request = Request::decode(header, payload)?;
        let answered = manager.with(|domain| scratch.answer(domain, guest, request));
        answered.ok_or(ServeError::Stopped)??;
        stream.write_all(&scratch.out)?;
        scratch.judge()?;
        pace.rest();
    }
    Ok(())
}

/// How fast one connection is answered: its thread may use [`CPU_SHARE`] of a CPU, for long.
struct ServePace {
    began: Instant,
    used_before: Duration,
}

impl ServePace {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            used_before: thread_cpu(),
        }
    }

    /// Waits for as long as this thread is ahead of its share. What was not used is forgotten after a second.
    fn rest(&mut self) {
        let due = (thread_cpu() - self.used_before).div_f64(CPU_SHARE);
        let passed = self.began.elapsed();
        if due > passed + CPU_BURST {
            std::thread::sleep(due - passed);
        } else if passed > due + CPU_BURST {
            *self = Self::new();
        }
    }
}

fn thread_cpu() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec.unsigned_abs() as u32)
}

/// The next request's header and payload; `None` at the end of the connection. The buffer only ever grows, to the
/// longest message: half a MiB.
fn receive_request<'a>(
    stream: &mut UnixStream,
    buffer: &'a mut Vec<u8>,
) -> Result<Option<(Header, &'a [u8])>, ServeError> {
    let mut header = [0; HEADER];
    // A peer that dies between messages ends the connection in good order.
    if stream.read(&mut header[..1])? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[1..])?;
    let header = Header::parse(header, Direction::Request)?;
    if buffer.len() < header.length() {
        buffer.resize(header.length(), 0);
    }
    let payload = &mut buffer[..header.length()];
    stream.read_exact(payload)?;
    Ok(Some((header, payload)))
}

fn receive_held(
    stream: &mut UnixStream,
    buffer: &mut Vec<u8>,
    hello: Hello,
) -> Result<Vec<Slot>, ServeError> {
    // What a guest may hold at all: see `Guest::may_hold_more`; one publication may go beyond.
    let most = u64::from(hello.pages) * 2 + (REPORT_BATCH + PUBLISH_BATCH) as u64;
    if u64::from(hello.held) > most {
        return Err(ServeError::Protocol(
            "it claims to hold more than its guest could map",
        ));
    }
    let mut held = Vec::new();
    while held.len() < hello.held as usize {
        let Some((header, payload)) = receive_request(stream, buffer)? else {
            return Err(ServeError::Protocol("it left in the middle of its references"));
        };
        match Request::decode(header, payload)? {
            Request::Held(slots) if !slots.is_empty() => held.extend_from_slice(&slots),
            _ => return Err(ServeError::Protocol("it did not finish naming its references")),
        }
    }
    if held.len() != hello.held as usize {
        return Err(ServeError::Protocol("it named more references than it announced"));
    }
    Ok(held)
}

/// A guest that may go on.
struct Admitted {
    session: Session,
    offers_ready: Arc<OwnedFd>,
    reconnected: Reconnected,
}

/// Attaches the guest or takes it back.
fn admit(domain: &mut Domain, peer: Peer, hello: Hello, held: &[Slot]) -> Result<Admitted, PortError> {
    let current = peer.guest.map(|guest| (guest, domain.generation));
    let (guest, reconnected) = match peer.guest {
        Some(guest) if current == hello.before => {
            domain.restate(guest, held)?;
            (guest, Reconnected::SamePool)
        }
        // Its last welcome never reached it, so it cannot have used anything of this pool.
        Some(guest) => {
            domain.restate(guest, &[])?;
            (guest, Reconnected::FreshPool)
        }
        None => {
            let guest = domain.attach(peer.pages).map_err(PortError::Failed)?;
            (guest, Reconnected::FreshPool)
        }
    };
    Ok(Admitted {
        session: domain.session(guest).map_err(PortError::Invalid)?,
        offers_ready: domain.offers_ready(guest).map_err(PortError::Invalid)?,
        reconnected,
    })
}

/// Sends a guest what it needs.
fn welcome(stream: &UnixStream, admitted: Admitted) -> io::Result<()> {
    let Admitted {
        session,
        offers_ready,
        reconnected,
    } = admitted;
    let mut out = Vec::new();
    Reply::Welcome(Welcome {
        guest: session.guest,
        generation: session.generation,
        key: session.key,
        slot_limit: session.slot_limit,
        reconnected,
    })
    .encode(&mut out);
    send_with_fds(stream, &out, &[session.pool.as_fd(), offers_ready.as_fd()])
}

/// Buffers of a connection, kept from call to call.
#[derive(Debug, Default)]
struct Scratch {
    answers: Vec<Answer>,
    results: Vec<Publication>,
    offers: Vec<Offer>,
    out: Vec<u8>,
    /// A call that named something impossible, answered and not yet judged.
    invalid: Option<Invalid>,
    sent: u64,
    mismatched: u64,
}

impl Scratch {
    /// Whether the peer may go on: a sound process never names what is impossible, and what it sends changes under its
    /// hands now and then, not most of the time.
    fn judge(&self) -> Result<(), ServeError> {
        if self.invalid.is_some() {
            return Err(ServeError::Protocol("it named something impossible"));
        }
        if self.mismatched > MISMATCHES && self.mismatched * 2 > self.sent {
            return Err(ServeError::Protocol(
                "most pages that it sends are not what it says they are",
            ));
        }
        Ok(())
    }

    /// Does what `request` asks and leaves the reply in `out`.
    fn answer(
        &mut self,
        domain: &mut Domain,
        guest: GuestId,
        request: Request<'_>,
    ) -> Result<(), ServeError> {
        let done = match request {
            Request::Report(pages) => domain
                .report(guest, &pages, &mut self.answers)
                .map(|()| Reply::Answers(Cow::Borrowed(&self.answers))),
            Request::Publish(pages, bytes) => {
                let done = domain.publish(guest, &pages, bytes, &mut self.results);
                let mismatch = Publication::Refused(Refusal::SketchMismatch);
                self.sent += pages.len() as u64;
                self.mismatched += self.results.iter().filter(|result| **result == mismatch).count() as u64;
                done.map(|()| Reply::Publications(Cow::Borrowed(&self.results)))
            }
            Request::Offers => domain
                .offers(guest, &mut self.offers)
                .map(|()| Reply::Offers(Cow::Borrowed(&self.offers))),
            Request::Withdraw(pages) => domain.withdraw(guest, &pages).map(|()| Reply::Done),
            Request::Release(generation, slots) => {
                domain.release(guest, generation, &slots).map(|()| Reply::Done)
            }
            Request::Claim(generation, slots) => domain
                .claim(guest, generation, &slots, &mut self.answers)
                .map(|()| Reply::Answers(Cow::Borrowed(&self.answers))),
            Request::Hello(_) | Request::Held(_) => {
                return Err(ServeError::Protocol("it said hello twice"));
            }
        };
        let reply = done.unwrap_or_else(|error| match error {
            PortError::StaleGeneration { slots, session } => Reply::Stale(slots, session),
            PortError::Invalid(invalid) => {
                self.invalid = Some(invalid);
                Reply::Invalid(invalid)
            }
            PortError::Failed(error) => Reply::Failed(error.raw_os_error().unwrap_or(0)),
            PortError::Gone => Reply::Failed(0),
        });
        self.out.clear();
        reply.encode(&mut self.out);
        Ok(())
    }
}
