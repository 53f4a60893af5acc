//! The manager's end of a connection.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::descriptors::send_with_fds;
use crate::attach::Attachment;
use crate::death::GuestProcess;
use crate::domain::Domain;
use crate::local::LocalManager;
use crate::page::Slot;
use crate::port::{
    Answer, Invalid, Offer, PUBLISH_BATCH, PortError, Publication, REPORT_BATCH, Refusal, Session,
};
use crate::wire::{Direction, HEADER, Header, Reply, Request, Welcome, WireError};

/// Part of a CPU that answering one peer may take in the long run: a good 90,000 published pages a second.
const CPU_SHARE: f64 = 0.25;

/// How far a peer may be ahead of its share, and what it can save up.
const CPU_BURST: Duration = Duration::from_secs(1);

/// Pages that were not what they were sent as, before it matters how many were right.
const MISMATCHES: u64 = 256;

/// Who is at the other end of a connection, as the manager knows without asking: from the process it started, or
/// from the kernel's word about the peer.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Pages that its guest has.
    pub pages: u32,
    /// The process that owns the guest's memory; the same value for all its connections. When it is dead, its
    /// [`Dead`](crate::Dead) goes to [`Domain::detach`].
    pub process: GuestProcess,
}

/// Why a connection ended before its time. Nothing was released: that takes the process's death.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The peer said something that is not a message.
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
    Attach(#[source] io::Error),
    /// The guest has ended, or a newer connection speaks for it.
    #[error("the connection no longer speaks for its guest, which has ended or has a newer one")]
    Superseded,
    /// The connection failed.
    #[error("the connection to the guest's process failed")]
    Io(#[from] io::Error),
}

impl ServeError {
    /// Whether the peer broke the rules, as no sound process does.
    pub fn is_offence(&self) -> bool {
        matches!(self, Self::Wire(_) | Self::Protocol(_))
    }
}

/// Serves one connection until the peer closes it, or until its guest has ended or has a newer connection. The guest is
/// attached when its process says hello for the first time, and taken back each time after.
///
/// # Errors
/// [`ServeError`].
pub fn serve(mut stream: UnixStream, manager: &LocalManager, peer: Peer) -> Result<(), ServeError> {
    let outcome = converse(&mut stream, manager, &peer);
    // The caller may have a descriptor of its own; the peer is to see at once that it is not heard any more.
    let _ = stream.shutdown(std::net::Shutdown::Both);
    outcome
}

fn converse(stream: &mut UnixStream, manager: &LocalManager, peer: &Peer) -> Result<(), ServeError> {
    let mut buffer = Vec::new();
    let Some((header, payload)) = receive_request(stream, &mut buffer)? else {
        return Ok(());
    };
    let Request::Hello(pages) = Request::decode(header, payload)? else {
        return Err(ServeError::Protocol("its first message was not a hello"));
    };
    if pages != peer.pages {
        return Err(ServeError::Protocol(
            "it named another memory size than its guest has",
        ));
    }
    let admitted = manager.with(|domain| admit(domain, peer));
    let admitted = admitted.ok_or(ServeError::Stopped)?.map_err(ServeError::Attach)?;
    let from = admitted.attachment;
    welcome(stream, admitted)?;
    let (mut scratch, mut pace) = (Scratch::default(), ServePace::new());
    while let Some((header, payload)) = receive_request(stream, &mut buffer)? {
        let request = match Request::decode(header, payload)? {
            Request::Held(slots) => {
                scratch.keep(&slots, peer.pages)?;
                pace.rest();
                continue;
            }
            request => request,
        };
        let answered = manager.with(|domain| scratch.answer(domain, from, request));
        answered.ok_or(ServeError::Stopped)??;
        stream.write_all(&scratch.out)?;
        scratch.judge()?;
        pace.rest();
    }
    Ok(())
}

/// How fast one connection is answered: its thread may use [`CPU_SHARE`] of a CPU in the long run.
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

/// A guest that may go on.
struct Admitted {
    attachment: Attachment,
    session: Session,
    offers_ready: Arc<OwnedFd>,
}

/// Attaches the guest or takes it back.
fn admit(domain: &mut Domain, peer: &Peer) -> io::Result<Admitted> {
    let attachment = domain.admit(peer.pages, &peer.process)?;
    Ok(Admitted {
        attachment,
        session: domain.session(attachment).map_err(io::Error::other)?,
        offers_ready: domain.offers_ready(attachment).map_err(io::Error::other)?,
    })
}

/// Sends a guest what it needs.
fn welcome(stream: &UnixStream, admitted: Admitted) -> io::Result<()> {
    let Admitted {
        session,
        offers_ready,
        ..
    } = admitted;
    let mut out = Vec::new();
    Reply::Welcome(Welcome {
        guest: session.guest,
        generation: session.generation,
        key: session.key,
        slot_limit: session.slot_limit,
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
    /// References that the peer has named as its own, until it has named them all.
    held: Vec<Slot>,
    out: Vec<u8>,
    /// A call that named something impossible, answered and not yet judged.
    invalid: Option<Invalid>,
    sent: u64,
    mismatched: u64,
}

impl Scratch {
    /// Notes references that a guest of `pages` pages says it has.
    fn keep(&mut self, slots: &[Slot], pages: u32) -> Result<(), ServeError> {
        if slots.is_empty() {
            return Err(ServeError::Protocol("it named references, but none"));
        }
        // What a guest may hold at all: see `Guest::may_hold_more`; one publication may go beyond.
        let most = u64::from(pages) * 2 + (REPORT_BATCH + PUBLISH_BATCH) as u64;
        if (self.held.len() + slots.len()) as u64 > most {
            return Err(ServeError::Protocol(
                "it claims to hold more than its guest could map",
            ));
        }
        self.held.extend_from_slice(slots);
        Ok(())
    }

    /// All references that the peer has named, if there are `count`.
    fn all_held(&mut self, count: u32) -> Result<Vec<Slot>, ServeError> {
        let held = std::mem::take(&mut self.held);
        match held.len() == count as usize {
            true => Ok(held),
            false => Err(ServeError::Protocol(
                "it named another number of references than it says",
            )),
        }
    }

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
        guest: Attachment,
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
            Request::Restate(count) => {
                let held = self.all_held(count)?;
                domain.restate(guest, &held).map(|()| Reply::Done)
            }
            Request::Hello(_) | Request::Held(_) => {
                return Err(ServeError::Protocol("it said hello twice"));
            }
        };
        let reply = match done {
            Ok(reply) => reply,
            Err(PortError::Superseded(_)) => return Err(ServeError::Superseded),
            Err(PortError::StaleGeneration { slots, session }) => Reply::Stale(slots, session),
            Err(PortError::Invalid(invalid)) => {
                self.invalid = Some(invalid);
                Reply::Invalid(invalid)
            }
            Err(PortError::Failed(error)) => Reply::Failed(error.raw_os_error().unwrap_or(0)),
            Err(PortError::Gone) => Reply::Failed(0),
        };
        self.out.clear();
        reply.encode(&mut self.out);
        Ok(())
    }
}
