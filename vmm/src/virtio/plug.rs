//! A device plugged into the machine: its lock, its interrupt, and its thread while the guest's driver runs it.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::{io, thread};

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::device::{Interest, VirtioDevice};
use super::ring::{Fault, Rings, Turn};
use super::wait;
use crate::memory::GuestRam;

/// Ring features that every device has here.
const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Reasons for an interrupt, as the guest reads them.
const USED_RING: u32 = 1;
const CONFIGURATION: u32 = 2;

/// How a device gets the guest's attention.
#[derive(Debug)]
pub struct Interrupt {
    line: EventFd,
    reasons: AtomicU32,
    config_generation: AtomicU32,
    needs_reset: AtomicBool,
}

impl Interrupt {
    fn new() -> io::Result<Self> {
        Ok(Self {
            line: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            reasons: AtomicU32::new(0),
            config_generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
        })
    }

    /// The descriptor whose signal is the interrupt.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// Buffers went back to the guest.
    pub fn queue_used(&self) {
        self.raise(USED_RING);
    }

    /// The configuration space changed.
    pub fn config_changed(&self) {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIGURATION);
    }

    fn raise(&self, reason: u32) {
        self.reasons.fetch_or(reason, Ordering::SeqCst);
        // An eventfd only refuses at 2^64-1 signals that nobody took; the interrupt is pending then anyway.
        let _ = self.line.write(1);
    }

    /// Reasons not yet acknowledged.
    pub(super) fn reasons(&self) -> u32 {
        self.reasons.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledge(&self, reasons: u32) {
        self.reasons.fetch_and(!reasons, Ordering::SeqCst);
    }

    pub(super) fn config_generation(&self) -> u32 {
        self.config_generation.load(Ordering::SeqCst)
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }
}

/// Counters of a plugged device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PlugStats {
    /// How often the guest broke the rules and the device had to wait for a reset.
    pub needs_reset: u64,
    /// Kicks that reached the device.
    pub kicks: u64,
}

#[derive(Debug, Default)]
struct Counters {
    needs_reset: AtomicU64,
    kicks: AtomicU64,
}

/// A device in its slot.
pub struct Plug {
    device: Arc<Mutex<dyn VirtioDevice>>,
    name: String,
    ram: Arc<GuestRam>,
    interrupt: Arc<Interrupt>,
    kicks: Arc<Vec<EventFd>>,
    counters: Arc<Counters>,
    worker: Mutex<Option<Worker>>,
}

struct Worker {
    stop: Arc<AtomicBool>,
    wake: EventFd,
    thread: JoinHandle<()>,
}

impl Plug {
    /// Plugs `device` in; `name` tells it apart in messages (`disk0`).
    ///
    /// # Errors
    /// When the host is out of file descriptors.
    pub fn new(name: &str, device: Arc<Mutex<dyn VirtioDevice>>, ram: Arc<GuestRam>) -> io::Result<Self> {
        let queues = lock(&device).queue_sizes().len();
        let kicks: io::Result<Vec<_>> = (0..queues)
            .map(|_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))
            .collect();
        Ok(Self {
            device,
            name: name.to_owned(),
            ram,
            interrupt: Arc::new(Interrupt::new()?),
            kicks: Arc::new(kicks?),
            counters: Arc::default(),
            worker: Mutex::new(None),
        })
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's interrupt.
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    /// One descriptor per queue; a signal is the driver's kick.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// The counters so far.
    pub fn stats(&self) -> PlugStats {
        PlugStats {
            needs_reset: self.counters.needs_reset.load(Ordering::Relaxed),
            kicks: self.counters.kicks.load(Ordering::Relaxed),
        }
    }

    pub(super) fn device(&self) -> MutexGuard<'_, dyn VirtioDevice + 'static> {
        lock(&self.device)
    }

    /// All feature bits the driver may choose from.
    pub(super) fn features(&self) -> u64 {
        self.device().features() | RING_FEATURES
    }

    /// Empty queues of the sizes that the device wants.
    pub(super) fn new_queues(&self) -> Vec<Queue> {
        let sizes = self.device().queue_sizes().to_vec();
        let new = |size| Queue::new(size).expect("devices name powers of two up to 32768");
        sizes.into_iter().map(new).collect()
    }

    /// The driver is ready: checks its queues and starts the device's thread.
    pub(super) fn activate(&self, features: u64, mut queues: Vec<Queue>) {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if worker.is_some() || self.interrupt.needs_reset() {
            return;
        }
        let memory = self.ram.view();
        if features & 1 << VIRTIO_F_VERSION_1 == 0 || queues.iter().any(|q| q.ready() && !q.is_valid(memory))
        {
            let what = "the driver started the device without VERSION_1 or with rings outside guest memory";
            return fail(
                &self.name,
                &self.interrupt,
                &self.counters,
                &Fault::Protocol(what.into()),
            );
        }
        for queue in &mut queues {
            queue.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
        }
        match self.start(features, queues) {
            Ok(started) => *worker = started,
            Err(e) => {
                let what = Fault::Protocol(format!("the host cannot start the device's thread: {e}"));
                fail(&self.name, &self.interrupt, &self.counters, &what);
            }
        }
    }

    /// Activates the device and starts its thread; no thread where the device refuses its driver.
    fn start(&self, features: u64, queues: Vec<Queue>) -> io::Result<Option<Worker>> {
        let stop = Arc::new(AtomicBool::new(false));
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let (ram, interrupt) = (Arc::clone(&self.ram), Arc::clone(&self.interrupt));
        let mut rings = Rings::new(ram, queues, interrupt, Arc::clone(&stop));
        if let Err(fault) = self.device().activate(features, &mut rings) {
            fail(&self.name, &self.interrupt, &self.counters, &fault);
            return Ok(None);
        }
        let turns = Turns {
            device: Arc::clone(&self.device),
            rings,
            kicks: Arc::clone(&self.kicks),
            counters: Arc::clone(&self.counters),
            wake: wake.try_clone()?,
        };
        let (name, interrupt, counters) = (
            self.name.clone(),
            Arc::clone(&self.interrupt),
            Arc::clone(&self.counters),
        );
        let thread = thread::Builder::new()
            .name(self.name.clone())
            .stack_size(256 << 10)
            .spawn(move || {
                if let Err(fault) = turns.run() {
                    fail(&name, &interrupt, &counters, &fault);
                }
            })?;
        Ok(Some(Worker { stop, wake, thread }))
    }

    /// The driver resets the device: its thread ends, and it is as new.
    pub(super) fn reset(&self) {
        self.stop();
        self.device().reset();
        for kick in self.kicks.iter() {
            let _ = kick.read();
        }
        self.interrupt.needs_reset.store(false, Ordering::SeqCst);
        self.interrupt.reasons.store(0, Ordering::SeqCst);
    }

    /// Ends the device's thread, if it runs.
    pub fn stop(&self) {
        let worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(worker) = worker else { return };
        worker.stop.store(true, Ordering::SeqCst);
        let _ = worker.wake.write(1);
        // A panicked device thread has ended too, which is all that matters here.
        let _ = worker.thread.join();
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock(device: &Arc<Mutex<dyn VirtioDevice>>) -> MutexGuard<'_, dyn VirtioDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts the device into NEEDS_RESET. A guest can cause this once per reset of the device, which bounds the log.
fn fail(name: &str, interrupt: &Interrupt, counters: &Counters, fault: &Fault) {
    let times = counters.needs_reset.fetch_add(1, Ordering::Relaxed);
    if times < 8 {
        log::warn!("{name}: {fault}; the device waits for a reset by its driver");
    }
    interrupt.needs_reset.store(true, Ordering::SeqCst);
    interrupt.config_changed();
}

/// The life of a device's thread.
struct Turns {
    device: Arc<Mutex<dyn VirtioDevice>>,
    rings: Rings,
    kicks: Arc<Vec<EventFd>>,
    counters: Arc<Counters>,
    wake: EventFd,
}

/// Tokens of the thread's own descriptors lie above those of devices.
const WAKE: usize = usize::MAX;
const KICKS: usize = usize::MAX / 2;

impl Turns {
    fn run(mut self) -> Result<(), Fault> {
        // Whatever the driver queued before the thread ran needs no kick.
        for index in 0..self.rings.count() {
            self.serve(index)?;
        }
        while !self.rings.stopping() {
            let interests = self.interests();
            let ready = wait::wait(&interests)
                .map_err(|e| Fault::Protocol(format!("the host cannot wait for the device: {e}")))?;
            for token in ready {
                self.handle(token)?;
            }
        }
        Ok(())
    }

    fn interests(&self) -> Vec<Interest> {
        let input = |fd: &EventFd, token| Interest {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            token,
        };
        let mut all = vec![input(&self.wake, WAKE)];
        all.extend(
            self.kicks
                .iter()
                .enumerate()
                .map(|(i, kick)| input(kick, KICKS + i)),
        );
        all.extend(lock(&self.device).interests());
        all
    }

    fn handle(&mut self, token: usize) -> Result<(), Fault> {
        match token {
            WAKE => {
                let _ = self.wake.read();
                Ok(())
            }
            kick if kick >= KICKS => {
                let index = kick - KICKS;
                // Clear first: a kick during the turn must wake us again.
                let _ = self.kicks[index].read();
                self.counters.kicks.fetch_add(1, Ordering::Relaxed);
                self.serve(index)
            }
            token => lock(&self.device).host_ready(token, &mut self.rings),
        }
    }

    fn serve(&mut self, index: usize) -> Result<(), Fault> {
        if !self.rings.is_ready(index) {
            return Ok(());
        }
        let turn = lock(&self.device).queue_ready(index, &mut self.rings)?;
        if turn == Turn::More {
            let _ = self.kicks[index].write(1);
        }
        Ok(())
    }
}
