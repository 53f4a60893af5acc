//! The console device.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use super::backlog::Backlog;
use crate::confine;
use crate::lock::lock;
use crate::virtio::{Chain, DeviceKind, Fault, Figures, Interest, Malformed, Rings, Turn, VirtioDevice};

const QUEUES: [u16; 2] = [64, 64];
/// To the guest.
const RECEIVE: usize = 0;
/// From the guest.
const TRANSMIT: usize = 1;

const LISTENER: usize = 0;
const CLIENT: usize = 1;

/// Bytes for the guest that wait on the host at most; the rest stays in the client's socket.
const MAX_PENDING: usize = 64 << 10;

/// Bytes of one chain from the guest that are read: more than that would be dropped unread a moment later.
const MAX_CHAIN: usize = 256 << 10;

/// Where the VMM itself reads along: called with each whole line from the guest.
pub type LineSink = Box<dyn FnMut(&[u8]) + Send>;

/// Counters of the channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ConsoleStats {
    /// Bytes from the guest.
    pub from_guest: u64,
    /// Bytes that the guest took.
    pub to_guest: u64,
    /// Lines from the guest that were dropped because no client read them or because they were too long.
    pub dropped_lines: u64,
}

/// The VMM's own way to the console, without the console's lock, which the guest may keep busy. Clones are the same way.
#[derive(Clone, Debug, Default)]
pub struct ConsoleHandle {
    /// Bytes of the VMM's own for the guest that the console has not taken yet.
    own: Arc<Mutex<Vec<u8>>>,
    figures: Figures<ConsoleStats>,
}

impl ConsoleHandle {
    /// Puts `bytes` behind what already waits for the guest. Kick the receive queue afterwards.
    ///
    /// Returns `false`, and queues nothing, when too much waits already.
    pub fn send(&self, bytes: &[u8]) -> bool {
        let mut own = lock(&self.own);
        let fits = own.len() + bytes.len() <= MAX_PENDING;
        if fits {
            own.extend(bytes);
        }
        fits
    }

    /// The counters so far.
    pub fn stats(&self) -> ConsoleStats {
        self.figures.get()
    }
}

/// A console whose host side is a unix socket with one client at a time.
pub struct Console {
    listener: Option<UnixListener>,
    client: Option<UnixStream>,
    backlog: Backlog,
    pending: VecDeque<u8>,
    sink: LineSink,
    handle: ConsoleHandle,
}

impl Console {
    /// A console; clients of `listener` talk with the guest, and `sink` sees every line from it.
    ///
    /// # Errors
    /// When the listener cannot be made non-blocking.
    pub fn new(listener: Option<UnixListener>, sink: LineSink) -> io::Result<Self> {
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        Ok(Self {
            listener,
            client: None,
            backlog: Backlog::default(),
            pending: VecDeque::new(),
            sink,
            handle: ConsoleHandle::default(),
        })
    }

    /// The VMM's own way to it.
    pub fn handle(&self) -> ConsoleHandle {
        self.handle.clone()
    }

    fn take(&mut self, chain: &mut Chain<'_>) -> Result<(), Malformed> {
        let mut bytes = [0; 1024];
        let mut taken = 0;
        while chain.readable() > 0 && taken < MAX_CHAIN {
            let len = chain.read(&mut bytes)?;
            taken += len;
            self.backlog.push(&bytes[..len], &mut self.sink);
        }
        if chain.readable() > 0 {
            self.backlog.miss();
        }
        let dropped = self.backlog.dropped();
        self.handle.figures.change(|stats| {
            stats.from_guest += taken as u64;
            stats.dropped_lines = dropped;
        });
        Ok(())
    }

    /// Gives the guest what waits, as far as it has buffers.
    fn feed(&mut self, rings: &mut Rings) -> Result<(), Fault> {
        self.pending.extend(lock(&self.handle.own).drain(..));
        while !self.pending.is_empty() && !rings.is_spent() {
            let pending = &mut self.pending;
            let mut given = 0;
            let served = rings.serve_one(RECEIVE, |chain| {
                given = chain.write(pending.make_contiguous())?;
                Ok(())
            })?;
            self.pending.drain(..given);
            self.handle.figures.change(|stats| stats.to_guest += given as u64);
            if !served {
                break;
            }
        }
        rings.notify(RECEIVE)
    }

    fn flush(&mut self) {
        let Some(client) = &self.client else { return };
        if self.backlog.send(client).is_err() {
            self.hang_up();
        }
    }

    fn hang_up(&mut self) {
        self.client = None;
        self.backlog.reader_left();
    }

    fn accept(&mut self) {
        let accepted = self.listener.as_ref().and_then(|l| l.accept().ok());
        if let Some((client, _)) = accepted
            && confine::is_welcome(&client)
            && client.set_nonblocking(true).is_ok()
        {
            self.client = Some(client);
        }
    }

    fn receive(&mut self) {
        let Some(client) = &mut self.client else { return };
        let mut bytes = [0; 4096];
        match client.read(&mut bytes) {
            Ok(0) => self.hang_up(),
            Ok(len) => self.pending.extend(&bytes[..len]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.hang_up(),
        }
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, _offset: usize, data: &mut [u8]) {
        // Sizes and ports are features that are not offered.
        data.fill(0);
    }

    fn reset(&mut self) {
        lock(&self.handle.own).clear();
        self.pending.clear();
    }

    fn interests(&self) -> Vec<Interest> {
        let interest = |fd: RawFd, events, token| Interest { fd, events, token };
        match (&self.client, &self.listener) {
            (Some(client), _) => {
                let room = if self.pending.len() < MAX_PENDING {
                    libc::POLLIN
                } else {
                    0
                };
                let waiting = if self.backlog.is_empty() { 0 } else { libc::POLLOUT };
                match room | waiting {
                    // Even POLLHUP alone would be reported again and again while the guest takes nothing.
                    0 => Vec::new(),
                    events => vec![interest(client.as_raw_fd(), events, CLIENT)],
                }
            }
            (None, Some(listener)) => vec![interest(listener.as_raw_fd(), libc::POLLIN, LISTENER)],
            (None, None) => Vec::new(),
        }
    }

    fn queue_ready(&mut self, index: usize, rings: &mut Rings) -> Result<Turn, Fault> {
        if index == RECEIVE {
            self.feed(rings)?;
            return Ok(Turn::Drained);
        }
        let turn = rings.serve(TRANSMIT, |chain| self.take(chain))?;
        self.flush();
        Ok(turn)
    }

    fn host_ready(&mut self, token: usize, rings: &mut Rings) -> Result<(), Fault> {
        match token {
            LISTENER => self.accept(),
            _ => self.receive(),
        }
        self.flush();
        self.feed(rings)
    }
}
