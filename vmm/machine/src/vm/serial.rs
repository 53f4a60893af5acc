//! The human console: a 16550 on COM1, whose output never blocks a vCPU.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvm_ioctls::VmFd;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::EventFd;

use super::kvm::{HostError, refused};
use crate::confine::Role;
use crate::layout;
use crate::lock::lock;
use crate::outlet::{Lost, Manner, Outlet};

/// How output goes to the host; what does not fit is dropped, and counted.
const MANNER: Manner = Manner {
    name: "serial",
    role: Role::Serial,
    most: 256 << 10,
    note,
};
/// How long the last of it is waited for.
const LAST: Duration = Duration::from_secs(5);
/// What a panicking Linux says first.
const PANIC: &str = "Kernel panic - not syncing";
/// Longest line that is searched for it.
const LINE: usize = 512;

/// Called with the first line in which the guest's kernel says that it panics.
pub(super) type PanicSink = Box<dyn FnOnce(&str) + Send>;

/// Where the guest's console output goes: through a bounded buffer and a thread to any writer.
pub struct ConsoleOut {
    outlet: Outlet,
    line: Vec<u8>,
    panic: Option<PanicSink>,
}

fn note(lost: Lost) -> String {
    format!(
        "\n[levy: {} bytes of console output were dropped here]\n",
        lost.bytes
    )
}

impl ConsoleOut {
    /// Output to `to`; `panic` hears of the first kernel panic.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new(to: Box<dyn Write + Send>, panic: PanicSink) -> io::Result<Self> {
        Ok(Self {
            outlet: Outlet::start(MANNER, to)?,
            line: Vec::new(),
            panic: Some(panic),
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
        if let Some(at) = line.find(PANIC)
            && let Some(panic) = self.panic.take()
        {
            panic(line[at..].trim_end());
        }
        self.line.clear();
    }
}

impl Write for ConsoleOut {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bytes.iter().for_each(|&byte| self.watch(byte));
        self.outlet.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ConsoleOut {
    fn drop(&mut self) {
        // The guest has ended. Its last words are waited for, but a reader that has stopped keeps no process alive.
        self.outlet.settle(Some(LAST));
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
    let refused = refused("wire the serial port's interrupt");
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
        let mut port = lock(&self.0);
        let room = port.fifo_capacity().min(bytes.len());
        port.enqueue_raw_bytes(&bytes[..room]).unwrap_or(0)
    }
}
