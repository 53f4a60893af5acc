//! The thread that resolves faults, as the region sees it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use crate::region::faults::swap_thread::SwapIn;
use crate::region::faults::worker::{Sources, Worker};
use crate::region::guest::Guest;
use crate::region::options::{RegionThread, ThreadStarted};

/// The running thread.
#[derive(Debug)]
pub(crate) struct Handler {
    thread: Option<JoinHandle<()>>,
    bell: Arc<OwnedFd>,
    guest: Arc<Guest>,
}

impl Handler {
    /// Starts it. Pages come back from `sources`, and swapped ones that are touched go to `swap_ins`.
    pub(crate) fn start(
        sources: Sources,
        swap_ins: SyncSender<SwapIn>,
        started: ThreadStarted,
    ) -> std::io::Result<Self> {
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let guest = sources.guest.clone();
        let mut worker = Worker::new(sources, bell.clone(), swap_ins);
        let thread = std::thread::Builder::new()
            .name("page-faults".into())
            .spawn(move || {
                started.tell(RegionThread::FaultHandler);
                worker.run();
            })?;
        Ok(Self {
            thread: Some(thread),
            bell,
            guest,
        })
    }

    /// Makes it look at the gate, and at whether it should end.
    pub(crate) fn ring(&self) {
        let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
    }

    /// Lets it run for as long as the process does.
    pub(crate) fn detach(&mut self) {
        self.thread = None;
    }

    /// Ends it. Everything that it holds up must have been given back before.
    pub(crate) fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.guest.set_closing(true);
            self.ring();
            let _ = thread.join();
        }
    }
}
