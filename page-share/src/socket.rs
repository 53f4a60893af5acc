//! The port over a unix stream socket: [`SocketPort`] in the process that owns a guest, [`serve`] in the manager's.
//!
//! # What a hostile peer can do
//! A region's process may send anything, stop in the middle of a message, or never read. [`serve`] checks headers
//! before it allocates, holds no lock while it reads or writes, and lives on a thread of its own: only that connection
//! suffers: it ends at the first call that names something impossible, and when most pages that are sent are not what
//! they are said to be, and a peer that asks without end is answered at [`CPU_SHARE`] of a CPU. Closing a connection
//! releases nothing. A manager that answers nonsense, or nothing for
//! [`PATIENCE`], is treated as gone.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::domain::Domain;
use crate::guest::drain;
use crate::local::LocalManager;
use crate::page::{Gfn, GuestId, Page, PoolGeneration, Slot};
use crate::port::{
    Answer, Invalid, Offer, PUBLISH_BATCH, Port, PortError, Publication, REPORT_BATCH, Reconnected, Refusal,
    Report, Session,
};
use crate::wire::{Direction, HEADER, Header, Hello, Reply, Request, Welcome, WireError};

/// How long a region waits for its manager before it takes it for gone.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a region that lost its manager waits after the first try that failed; twice as long after each further one.
const FIRST_WAIT: Duration = Duration::from_millis(10);

/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Part of a CPU that answering one peer may take, for long: a good 90,000 published pages a second.
const CPU_SHARE: f64 = 0.25;

/// How far a peer may be ahead of its share, and what it can save up.
const CPU_BURST: Duration = Duration::from_secs(1);

/// Pages that were not what they were sent as, before anybody asks how many were right.
const MISMATCHES: u64 = 256;

/// Opens a connection to the manager.
type Connect = Box<dyn FnMut() -> io::Result<UnixStream> + Send>;

/// The port of one guest to a manager in another process.
pub struct SocketPort {
    connect: Connect,
    /// `None` once anything went wrong on it: a half-read answer cannot be resumed.
    stream: Option<UnixStream>,
    pages: u32,
    session: Session,
    offers_ready: OwnedFd,
    buffer: Vec<u8>,
    tries: Tries,
}

/// When to look for a manager that is gone.
#[derive(Debug, Default)]
struct Tries {
    /// Since the last call that was answered.
    wait: Duration,
    next: Option<Instant>,
}

impl Tries {
    fn is_time(&self) -> bool {
        self.next.is_none_or(|next| Instant::now() >= next)
    }

    /// A try is being made. Guests of one manager, which all lose it at once, do not stay in step.
    fn begin(&mut self, guest: GuestId) {
        self.wait = (self.wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
        let apart = self.wait / 64 * u32::from(guest.get() % 16);
        self.next = Some(Instant::now() + self.wait + apart);
    }
}

impl fmt::Debug for SocketPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("SocketPort");
        debug
            .field("stream", &self.stream)
            .field("session", &self.session);
        debug.finish_non_exhaustive()
    }
}

impl SocketPort {
    /// Attaches a guest of `pages` pages to the manager that `connect` reaches, now and after every loss.
    ///
    /// # Errors
    /// When there is no manager, it refuses, or it speaks another version.
    pub fn attach(
        pages: u32,
        mut connect: impl FnMut() -> io::Result<UnixStream> + Send + 'static,
    ) -> io::Result<Self> {
        let hello = Hello {
            pages,
            before: None,
            held: 0,
        };
        let joined = join(connect()?, hello, &[])?;
        Ok(Self {
            connect: Box::new(connect),
            stream: Some(joined.stream),
            pages,
            session: joined.session,
            offers_ready: joined.offers_ready,
            buffer: Vec::new(),
            tries: Tries::default(),
        })
    }

    /// Sends a request and waits for its reply. Whatever goes wrong on the way ends the connection.
    fn call(&mut self, request: &Request<'_>) -> Result<Reply<'static>, PortError> {
        let mut stream = self.stream.take().ok_or(PortError::Gone)?;
        self.buffer.clear();
        request.encode(&mut self.buffer);
        let exchange = stream
            .write_all(&self.buffer)
            .and_then(|()| receive_reply(&mut stream, &mut self.buffer));
        let reply = exchange.map_err(|_| PortError::Gone)?;
        self.stream = Some(stream);
        self.tries = Tries::default();
        match reply {
            Reply::Stale(slots, session) => Err(PortError::StaleGeneration { slots, session }),
            Reply::Invalid(invalid) => Err(PortError::Invalid(invalid)),
            Reply::Failed(errno) => Err(PortError::Failed(io::Error::from_raw_os_error(errno))),
            reply => Ok(reply),
        }
    }

    /// The manager answered something that is no answer to the question, or named a slot its pool cannot have.
    fn nonsense(&mut self) -> PortError {
        self.stream = None;
        PortError::Gone
    }

    fn is_slot(&self, slot: Slot) -> bool {
        slot.get() < self.session.slot_limit
    }
}

fn check_batch(count: usize, limit: usize) -> Result<(), PortError> {
    if count <= limit {
        return Ok(());
    }
    let (count, limit) = (u32::try_from(count).unwrap_or(u32::MAX), limit as u32);
    Err(PortError::Invalid(Invalid::Batch { count, limit }))
}

impl Port for SocketPort {
    fn session(&self) -> &Session {
        &self.session
    }

    fn report(&mut self, pages: &[Report], answers: &mut Vec<Answer>) -> Result<(), PortError> {
        answers.clear();
        check_batch(pages.len(), REPORT_BATCH)?;
        let reply = self.call(&Request::Report(Cow::Borrowed(pages)))?;
        let sound = |answer: &Answer| !matches!(answer, Answer::Shared(slot) if !self.is_slot(*slot));
        match reply {
            Reply::Answers(all) if all.len() == pages.len() && all.iter().all(sound) => {
                *answers = all.into_owned();
                Ok(())
            }
            _ => Err(self.nonsense()),
        }
    }

    fn publish(
        &mut self,
        pages: &[Report],
        bytes: &[Page],
        results: &mut Vec<Publication>,
    ) -> Result<(), PortError> {
        assert_eq!(pages.len(), bytes.len(), "every page comes with its bytes");
        results.clear();
        check_batch(pages.len(), PUBLISH_BATCH)?;
        let reply = self.call(&Request::Publish(Cow::Borrowed(pages), bytes))?;
        let sound =
            |result: &Publication| !matches!(result, Publication::Granted(slot) if !self.is_slot(*slot));
        match reply {
            Reply::Publications(all) if all.len() == pages.len() && all.iter().all(sound) => {
                *results = all.into_owned();
                Ok(())
            }
            _ => Err(self.nonsense()),
        }
    }

    fn offers(&mut self, offers: &mut Vec<Offer>) -> Result<(), PortError> {
        offers.clear();
        // Before asking: an offer that arrives in between makes the pipe readable again.
        drain(&self.offers_ready);
        let reply = self.call(&Request::Offers)?;
        let sound = |offer: &Offer| self.is_slot(offer.slot) && offer.gfn.get() < self.pages;
        match reply {
            Reply::Offers(all) if all.iter().all(sound) => {
                *offers = all.into_owned();
                Ok(())
            }
            _ => Err(self.nonsense()),
        }
    }

    fn offers_ready(&self) -> BorrowedFd<'_> {
        self.offers_ready.as_fd()
    }

    fn withdraw(&mut self, pages: &[Gfn]) -> Result<(), PortError> {
        check_batch(pages.len(), REPORT_BATCH)?;
        match self.call(&Request::Withdraw(Cow::Borrowed(pages)))? {
            Reply::Done => Ok(()),
            _ => Err(self.nonsense()),
        }
    }

    fn claim(
        &mut self,
        generation: PoolGeneration,
        slots: &[Slot],
        answers: &mut Vec<Answer>,
    ) -> Result<(), PortError> {
        answers.clear();
        check_batch(slots.len(), REPORT_BATCH)?;
        let reply = self.call(&Request::Claim(generation, Cow::Borrowed(slots)))?;
        let sound = |(answer, slot): (&Answer, &Slot)| match answer {
            Answer::Shared(granted) => granted == slot,
            Answer::Noted => true,
            Answer::Publish => false,
        };
        match reply {
            Reply::Answers(all) if all.len() == slots.len() && all.iter().zip(slots).all(sound) => {
                *answers = all.into_owned();
                Ok(())
            }
            _ => Err(self.nonsense()),
        }
    }

    fn release(&mut self, generation: PoolGeneration, slots: &[Slot]) -> Result<(), PortError> {
        check_batch(slots.len(), REPORT_BATCH)?;
        match self.call(&Request::Release(generation, Cow::Borrowed(slots)))? {
            Reply::Done => Ok(()),
            _ => Err(self.nonsense()),
        }
    }

    fn may_reconnect(&self) -> bool {
        self.tries.is_time()
    }

    fn reconnect(&mut self, held: &[Slot]) -> Result<Reconnected, PortError> {
        self.stream = None;
        self.tries.begin(self.session.guest);
        let hello = Hello {
            pages: self.pages,
            before: Some((self.session.guest, self.session.generation)),
            held: u32::try_from(held.len()).map_err(|_| PortError::Gone)?,
        };
        let stream = (self.connect)().map_err(|_| PortError::Gone)?;
        let joined = join(stream, hello, held).map_err(|_| PortError::Gone)?;
        self.stream = Some(joined.stream);
        self.session = joined.session;
        self.offers_ready = joined.offers_ready;
        Ok(joined.reconnected)
    }
}

/// A connection that has been welcomed.
struct Joined {
    stream: UnixStream,
    session: Session,
    offers_ready: OwnedFd,
    reconnected: Reconnected,
}

fn join(mut stream: UnixStream, hello: Hello, held: &[Slot]) -> io::Result<Joined> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut buffer = Vec::new();
    Request::Hello(hello).encode(&mut buffer);
    for slots in held.chunks(REPORT_BATCH) {
        Request::Held(Cow::Borrowed(slots)).encode(&mut buffer);
    }
    stream.write_all(&buffer)?;
    let (header, fds) = receive_header_and_fds(&stream)?;
    let Ok([pool, offers_ready]) = <[OwnedFd; 2]>::try_from(fds) else {
        return Err(refused("no pool came with its welcome"));
    };
    let reply = receive_payload(&mut stream, header, &mut buffer)?;
    let Reply::Welcome(welcome) = reply else {
        return Err(refused("it answered something else"));
    };
    let session = Session {
        guest: welcome.guest,
        generation: welcome.generation,
        key: welcome.key,
        pool: Arc::new(File::from(pool)),
        slot_limit: welcome.slot_limit,
    };
    Ok(Joined {
        stream,
        session,
        offers_ready,
        reconnected: welcome.reconnected,
    })
}

fn refused(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionRefused,
        format!("the manager did not welcome the guest: {what}"),
    )
}

fn receive_reply(stream: &mut UnixStream, buffer: &mut Vec<u8>) -> io::Result<Reply<'static>> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    receive_payload(stream, header, buffer)
}

fn receive_payload(
    stream: &mut UnixStream,
    header: [u8; HEADER],
    buffer: &mut Vec<u8>,
) -> io::Result<Reply<'static>> {
    let header = Header::parse(header, Direction::Reply).map_err(io::Error::other)?;
    buffer.resize(header.length(), 0);
    stream.read_exact(buffer)?;
    Reply::decode(header, buffer).map_err(io::Error::other)
}

/// Reads the header of a message that carries descriptors. They come with its first byte.
fn receive_header_and_fds(stream: &UnixStream) -> io::Result<([u8; HEADER], Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut header = [0; HEADER];
    let mut parts = [IoSliceMut::new(&mut header)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let received = recvmsg(stream, &mut parts, &mut control, flags)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes < HEADER {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((header, fds))
}

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

fn send_with_fds(mut stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let attached = control.push(SendAncillaryMessage::ScmRights(fds));
    debug_assert!(attached, "two descriptors have room");
    let sent = sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(&bytes[sent..])
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
