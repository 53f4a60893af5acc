//! The port over a unix stream socket: [`SocketPort`] in the process that owns a guest, [`serve`] in the manager's.
//!
//! # What a hostile peer can do
//! A region's process may send anything, stop in the middle of a message, or never read. [`serve`] checks headers
//! before it allocates, holds no lock while it reads or writes, and lives on a thread of its own: only that connection
//! suffers: it ends at the first call that names something impossible, and when most pages that are sent are not what
//! they are said to be, and a peer that asks without end is answered at a quarter of a CPU. Closing a connection
//! releases nothing, and neither does opening one: each connection has an epoch of its own, the newest alone is heard, and
//! only on it a process may say which references it really has. A manager that answers nonsense, or nothing for
//! [`PATIENCE`], is treated as gone.

mod descriptors;
mod serving;

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::guest::drain;
use crate::page::{Gfn, GuestId, Page, PoolGeneration, Slot};
use crate::port::{
    Answer, Invalid, Offer, PUBLISH_BATCH, Port, PortError, Publication, REPORT_BATCH, Reconnected, Report,
    Session,
};
use crate::wire::{Direction, HEADER, Header, Reply, Request};
use descriptors::receive_header_and_fds;

pub use serving::{Peer, ServeError, serve};

/// How long a region waits for its manager before it takes it for gone.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a region that lost its manager waits after the first try that failed; twice as long after each further one.
const FIRST_WAIT: Duration = Duration::from_millis(10);

/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

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
        let joined = join(connect()?, pages)?;
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

    /// The manager answered something that is not an answer to the question, or named a slot its pool cannot have.
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
        let stream = (self.connect)().map_err(|_| PortError::Gone)?;
        let mut joined = join(stream, self.pages).map_err(|_| PortError::Gone)?;
        let reconnected = match joined.session.generation == self.session.generation {
            true => Reconnected::SamePool,
            false => Reconnected::FreshPool,
        };
        // Only now, on the connection that alone speaks for this guest: what an earlier try has sent may be read later,
        // and must not count.
        if reconnected == Reconnected::SamePool {
            restate(&mut joined.stream, held, &mut self.buffer).map_err(|_| PortError::Gone)?;
        }
        self.stream = Some(joined.stream);
        self.session = joined.session;
        self.offers_ready = joined.offers_ready;
        Ok(reconnected)
    }
}

/// A connection that has been welcomed.
struct Joined {
    stream: UnixStream,
    session: Session,
    offers_ready: OwnedFd,
}

fn join(mut stream: UnixStream, pages: u32) -> io::Result<Joined> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut buffer = Vec::new();
    Request::Hello(pages).encode(&mut buffer);
    let written = stream.write_all(&buffer);
    let answered = written.and_then(|()| receive_header_and_fds(&stream));
    let (header, fds) = answered.map_err(unanswered)?;
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
    })
}

/// Says which references the guest really has.
fn restate(stream: &mut UnixStream, held: &[Slot], buffer: &mut Vec<u8>) -> io::Result<()> {
    let count = u32::try_from(held.len()).map_err(io::Error::other)?;
    buffer.clear();
    for slots in held.chunks(REPORT_BATCH) {
        Request::Held(Cow::Borrowed(slots)).encode(buffer);
    }
    Request::Restate(count).encode(buffer);
    stream.write_all(buffer)?;
    match receive_reply(stream, buffer)? {
        Reply::Done => Ok(()),
        _ => Err(refused("it does not know the references that the guest has")),
    }
}

/// A manager that lacks a descriptor or a thread for a guest can only hang up.
fn unanswered(error: io::Error) -> io::Error {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match error.kind() {
        BrokenPipe | ConnectionReset | UnexpectedEof => refused("it closed the connection; its log says why"),
        _ => error,
    }
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

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::{Domain, GuestProcess, LocalManager, PageHasher, Peer, serve};

    #[test]
    fn an_offer_of_a_slot_that_the_pool_cannot_have_is_nonsense() {
        let manager = LocalManager::new(Domain::new(1000).unwrap());
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = GuestProcess::of_child(child.id()).unwrap();
        let connect = {
            let manager = manager.clone();
            move || {
                let (ours, theirs) = UnixStream::pair()?;
                let (manager, process) = (manager.clone(), process.clone());
                std::thread::spawn(move || serve(theirs, &manager, Peer { pages: 8, process }));
                Ok(ours)
            }
        };
        let mut port = SocketPort::attach(8, connect).unwrap();
        let mut other = manager.attach(8).unwrap();
        let page = [7; crate::PAGE_SIZE];
        let sketch = PageHasher::new(&port.session().key).sketch(&page);
        let named = [Report {
            gfn: Gfn::new(3),
            sketch,
        }];
        port.report(&named, &mut Vec::new()).unwrap();
        other.report(&named, &mut Vec::new()).unwrap();
        other.publish(&named, &[page], &mut Vec::new()).unwrap();
        port.session.slot_limit = 0;
        assert!(matches!(port.offers(&mut Vec::new()), Err(PortError::Gone)));
        assert!(port.stream.is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
