//! A device plugged into the machine: its lock, its interrupt, and its thread while the guest's driver runs it.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::{io, thread};

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::device::{Interest, VirtioDevice};
use super::ring::{Fault, Rings, Turn};
use super::wait;
use crate::confine;
use crate::lock::lock;
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
        // An eventfd only refuses at 2^64-1 signals that no thread took; the interrupt is pending then anyway.
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

/// A device in its slot, with a thread of its own that works while a driver has it.
pub struct Plug {
    device: Arc<Mutex<dyn VirtioDevice>>,
    name: String,
    ram: Arc<GuestRam>,
    interrupt: Arc<Interrupt>,
    kicks: Arc<Vec<EventFd>>,
    counters: Arc<Counters>,
    worker: Mutex<Worker>,
}

/// The plug's ways to its thread, which lives as long as the plug: threads that run guest code start none.
struct Worker {
    /// Raised to take the device from its driver; `None` while no driver has it.
    stop: Option<Arc<AtomicBool>>,
    wake: Arc<EventFd>,
    tasks: Option<Sender<Task>>,
    thread: Option<JoinHandle<()>>,
}

/// What a device's thread is to do next. It says when it did.
enum Task {
    /// Work for a driver that accepted these features, until it is told to stop.
    Drive(u64, Rings, SyncSender<()>),
    /// Forget the driver.
    Reset(SyncSender<()>),
}

impl Worker {
    /// Has the thread do `task` and waits until it has, or has begun to drive.
    fn ask(&self, task: impl FnOnce(SyncSender<()>) -> Task) {
        let (done, wait) = sync_channel(1);
        if let Some(tasks) = &self.tasks
            && tasks.send(task(done)).is_ok()
        {
            let _ = wait.recv();
        }
    }

    /// Ends what the thread does for a driver.
    fn interrupt(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.store(true, Ordering::SeqCst);
            let _ = self.wake.write(1);
        }
    }
}

impl Plug {
    /// Plugs `device` in; `name` tells it apart in messages (`disk0`).
    ///
    /// # Errors
    /// When the host is out of file descriptors or threads.
    pub fn new(name: &str, device: Arc<Mutex<dyn VirtioDevice>>, ram: Arc<GuestRam>) -> io::Result<Self> {
        let queues = lock(&device).queue_sizes().len();
        let kicks: io::Result<Vec<_>> = (0..queues)
            .map(|_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))
            .collect();
        let (kicks, counters) = (Arc::new(kicks?), Arc::new(Counters::default()));
        let interrupt = Arc::new(Interrupt::new()?);
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let (tasks, given) = channel();
        let bench = Bench {
            name: name.to_owned(),
            device: Arc::clone(&device),
            kicks: Arc::clone(&kicks),
            counters: Arc::clone(&counters),
            interrupt: Arc::clone(&interrupt),
            wake: Arc::clone(&wake),
        };
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .stack_size(256 << 10)
            .spawn(move || bench.live(&given))
            .map_err(levy_protocol::not_started)?;
        Ok(Self {
            device,
            name: name.to_owned(),
            ram,
            interrupt,
            kicks,
            counters,
            worker: Mutex::new(Worker {
                stop: None,
                wake,
                tasks: Some(tasks),
                thread: Some(thread),
            }),
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

    /// The driver is ready: checks its queues and has the device's thread work them.
    pub(super) fn activate(&self, features: u64, mut queues: Vec<Queue>) {
        let mut worker = self.worker();
        if worker.stop.is_some() || self.interrupt.needs_reset() {
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
        let stop = Arc::new(AtomicBool::new(false));
        let (ram, interrupt) = (Arc::clone(&self.ram), Arc::clone(&self.interrupt));
        let rings = Rings::new(ram, queues, interrupt, Arc::clone(&stop));
        worker.stop = Some(stop);
        worker.ask(|begun| Task::Drive(features, rings, begun));
    }

    /// The driver resets the device: its thread rests, and it is as new.
    pub(super) fn reset(&self) {
        let mut worker = self.worker();
        worker.interrupt();
        worker.ask(Task::Reset);
        drop(worker);
        for kick in self.kicks.iter() {
            let _ = kick.read();
        }
        self.interrupt.needs_reset.store(false, Ordering::SeqCst);
        self.interrupt.reasons.store(0, Ordering::SeqCst);
    }

    /// Whether a driver has the device.
    #[cfg(test)]
    pub(super) fn is_driven(&self) -> bool {
        self.worker().stop.is_some()
    }

    fn worker(&self) -> MutexGuard<'_, Worker> {
        lock(&self.worker)
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        let mut worker = self.worker();
        worker.interrupt();
        // A thread without tasks to come ends.
        worker.tasks = None;
        if let Some(thread) = worker.thread.take() {
            // A panicked device thread has ended too, which is all that matters here.
            let _ = thread.join();
        }
    }
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

/// What a device's thread works with.
struct Bench {
    name: String,
    device: Arc<Mutex<dyn VirtioDevice>>,
    kicks: Arc<Vec<EventFd>>,
    counters: Arc<Counters>,
    interrupt: Arc<Interrupt>,
    wake: Arc<EventFd>,
}

/// Tokens of the thread's own descriptors lie above those of devices.
const WAKE: usize = usize::MAX;
const KICKS: usize = usize::MAX / 2;

impl Bench {
    /// The life of the thread: one driver after the other.
    fn live(self, tasks: &Receiver<Task>) {
        confine::enter(lock(&self.device).kind().role());
        for task in tasks {
            match task {
                Task::Drive(features, rings, begun) => {
                    if let Err(fault) = self.drive(features, rings, &begun) {
                        fail(&self.name, &self.interrupt, &self.counters, &fault);
                    }
                }
                Task::Reset(done) => {
                    // What woke the thread from its last driver must not disturb the next.
                    let _ = self.wake.read();
                    lock(&self.device).reset();
                    let _ = done.send(());
                }
            }
        }
    }

    /// Rings are read and written without a pause: they stay where they are for as long as a driver uses them.
    fn drive(&self, features: u64, rings: Rings, begun: &SyncSender<()>) -> Result<(), Fault> {
        let (ram, pages) = (Arc::clone(rings.ram()), rings.pages());
        pages.iter().for_each(|range| ram.exclude(*range));
        let result = self.work(features, rings, begun);
        pages.iter().for_each(|range| ram.include(*range));
        result
    }

    fn work(&self, features: u64, mut rings: Rings, begun: &SyncSender<()>) -> Result<(), Fault> {
        let active = lock(&self.device).activate(features, &mut rings);
        if let Err(fault) = active {
            // The driver, which waits for this, is to see that it failed.
            fail(&self.name, &self.interrupt, &self.counters, &fault);
            let _ = begun.send(());
            return Ok(());
        }
        let _ = begun.send(());
        // Whatever the driver queued before needs no kick.
        for index in 0..rings.count() {
            self.serve(index, &mut rings)?;
        }
        while !rings.stopping() {
            let interests = self.interests();
            let ready = wait::wait(&interests)
                .map_err(|e| Fault::Protocol(format!("the host cannot wait for the device: {e}")))?;
            for token in ready {
                self.handle(token, &mut rings)?;
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

    fn handle(&self, token: usize, rings: &mut Rings) -> Result<(), Fault> {
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
                self.serve(index, rings)
            }
            token => {
                rings.begin_turn();
                lock(&self.device).host_ready(token, rings)?;
                if rings.is_spent() {
                    // Whatever is left needs no kick of the driver.
                    self.kicks.iter().for_each(come_back);
                }
                Ok(())
            }
        }
    }

    fn serve(&self, index: usize, rings: &mut Rings) -> Result<(), Fault> {
        if !rings.is_ready(index) {
            return Ok(());
        }
        rings.begin_turn();
        let turn = lock(&self.device).queue_ready(index, rings)?;
        if turn == Turn::More || rings.is_spent() {
            come_back(&self.kicks[index]);
        }
        Ok(())
    }
}

/// Has the thread look at a queue again, after the others.
fn come_back(kick: &EventFd) {
    // It refuses only when it is signalled already.
    let _ = kick.write(1);
}
