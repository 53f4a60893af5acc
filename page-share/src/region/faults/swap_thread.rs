//! The swap thread: reads swapped pages that were touched, so that the fault handler need not wait for the disk, and
//! deals with compressed pages that turned out to be damaged, so that it need not tell of them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::page::PAGE_SIZE;
use crate::region::error::fatal;
use crate::region::guest::Guest;
use crate::region::kernel::thread_cpu;
use crate::region::options::{RegionThread, ThreadStarted};
use crate::region::reclaim::{ColdStore, NEIGHBOURS};
use crate::region::run::PageRun;
use crate::region::table::Claim;

/// Faults that can wait for the disk at once; more are tried again.
const QUEUE: usize = 1024;

/// Rest after a read that failed, longer after the next one, up to ten times this.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// A swapped page that was touched, with its neighbours, or a compressed one that is damaged.
#[derive(Debug)]
pub(crate) struct SwapIn {
    /// Of all of them, at most [`NEIGHBOURS`].
    pub(super) claim: Claim,
    /// The page that was touched.
    pub(super) wanted: PageRun,
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct SwapThread {
    thread: Option<JoinHandle<()>>,
}

impl SwapThread {
    /// Starts it; what is sent is read and brought back, in order. It ends when the sender is dropped.
    pub(crate) fn start(
        guest: Arc<Guest>,
        cold: Arc<ColdStore>,
        started: ThreadStarted,
    ) -> std::io::Result<(Self, SyncSender<SwapIn>)> {
        let (sender, receiver) = sync_channel(QUEUE);
        let builder = std::thread::Builder::new().name("page-swap-ins".into());
        let thread = builder.spawn(move || {
            started.tell(RegionThread::SwapIns);
            run(&guest, &cold, &receiver);
        })?;
        Ok((Self { thread: Some(thread) }, sender))
    }

    /// Lets it run for as long as the handler does.
    pub(crate) fn detach(&mut self) {
        self.thread = None;
    }

    /// Waits for its end.
    pub(crate) fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(guest: &Guest, cold: &ColdStore, requests: &Receiver<SwapIn>) {
    let mut buffer = vec![[0; PAGE_SIZE]; NEIGHBOURS as usize].into_boxed_slice();
    let mut cpu = thread_cpu();
    let mut failures = 0u32;
    for SwapIn { claim, wanted } in requests {
        let failed = guest.counters().swap_reads_failed.get();
        cold.bring_back(claim, wanted, &mut buffer);
        let now = thread_cpu();
        guest.counters().handler_cpu_ns.add((now - cpu).as_nanos() as u64);
        cpu = now;
        // The thread that waits for the page asks again at once: a disk that fails is left in peace for a moment.
        failures = if guest.counters().swap_reads_failed.get() > failed {
            failures + 1
        } else {
            0
        };
        if !guest.is_giving_up() {
            std::thread::sleep(FAILURE_PAUSE * failures.min(10));
        }
    }
    if !guest.is_closing() {
        fatal(format_args!("the fault handler hung up on the swap thread"));
    }
}
