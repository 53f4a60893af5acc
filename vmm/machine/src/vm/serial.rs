//! The human console: a 16550 on COM1, whose output never blocks a vCPU.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use kvm_ioctls::VmFd;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::EventFd;

use super::kvm::HostError;
use crate::confine::{self, Role};
use crate::layout;

/// Output that waits for the host at most; more is dropped, oldest last, and counted.
const MAX_WAITING: usize = 256 << 10;
/// What a panicking Linux says first.
const PANIC: &str = "Kernel panic - not syncing";
/// Longest line that is searched for it.
const LINE: usize = 512;

/// Called with the line in which the guest's kernel says that it panics.
pub(super) type PanicSink = Box<dyn FnMut(&str) + Send>;

/// Where the guest's console output goes: through a bounded buffer and a thread to any writer.
pub struct ConsoleOut {
    shared: Arc<Shared>,
    line: Vec<u8>,
    panic: PanicSink,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    dropped: u64,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConsoleOut {
    /// Output to `to`; `panic` hears of kernel panics.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new(to: Box<dyn Write + Send>, panic: PanicSink) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("serial".into())
            .stack_size(128 << 10)
            .spawn(move || {
                confine::enter(Role::Stream);
                carry(&writer, to);
            })
            .map_err(levy_protocol::not_started)?;
        Ok(Self {
            shared,
            line: Vec::new(),
            panic,
            thread: Some(thread),
        })
    }

    fn watch(&mut self, byte: u8) {
        if byte != b'\n' {
            if self.line.len() < LINE {
                self.line.push(byte);
            }
            return;
        }
        let line = String::from_utf8_lossy(&self.line);
        if let Some(at) = line.find(PANIC) {
            (self.panic)(line[at..].trim_end());
        }
        self.line.clear();
    }
}

impl Write for ConsoleOut {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bytes.iter().for_each(|&byte| self.watch(byte));
        let mut state = self.shared.lock();
        if state.waiting.len() + bytes.len() > MAX_WAITING {
            state.dropped += bytes.len() as u64;
        } else {
            state.waiting.extend_from_slice(bytes);
            self.shared.changed.notify_one();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ConsoleOut {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn carry(shared: &Shared, mut to: Box<dyn Write + Send>) {
    loop {
        let mut state = shared.lock();
        while state.waiting.is_empty() && !state.closed {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let bytes = std::mem::take(&mut state.waiting);
        let dropped = std::mem::take(&mut state.dropped);
        let closed = state.closed;
        drop(state);
        let noted = match dropped {
            0 => Ok(()),
            n => writeln!(to, "\n[levy: {n} bytes of console output were dropped here]"),
        };
        // A host that no longer reads the console must not stop the guest.
        let _ = noted
            .and_then(|()| to.write_all(&bytes))
            .and_then(|()| to.flush());
        if closed && bytes.is_empty() {
            return;
        }
    }
}

/// The interrupt line of the serial port.
pub(super) struct SerialLine(EventFd);

impl Trigger for SerialLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The port as the bus sees it.
pub(super) type SerialPort = Arc<Mutex<Serial<SerialLine, NoEvents, ConsoleOut>>>;

/// Puts a serial port on COM1's interrupt line.
pub(super) fn serial_port(vm: &VmFd, out: ConsoleOut) -> Result<SerialPort, HostError> {
    let refused = |source| HostError::Refused {
        step: "wire the serial port's interrupt",
        source,
    };
    let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .map_err(|e| refused(kvm_ioctls::Error::new(e.raw_os_error().unwrap_or(libc::EMFILE))))?;
    vm.register_irqfd(&line, layout::COM1_GSI).map_err(refused)?;
    Ok(Arc::new(Mutex::new(Serial::new(SerialLine(line), out))))
}

/// The way in for what a person types.
#[derive(Clone)]
pub struct SerialInput(pub(super) SerialPort);

impl SerialInput {
    /// Gives the guest as much of `bytes` as its 64-byte buffer takes; returns how much that was.
    pub fn send(&self, bytes: &[u8]) -> usize {
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = port.fifo_capacity().min(bytes.len());
        port.enqueue_raw_bytes(&bytes[..room]).unwrap_or(0)
    }
}
