//! The swap thread: reads swapped pages that were touched, so that the fault handler need not wait for the disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::page::PAGE_SIZE;
use crate::region::error::fatal;
use crate::region::guest::Guest;
use crate::region::memory::thread_cpu;
use crate::region::state::Claim;

/// Faults that can wait for the disk at once; more are tried again.
const QUEUE: usize = 1024;

/// The running thread.
#[derive(Debug)]
pub(crate) struct Swapper {
    thread: Option<JoinHandle<()>>,
}

impl Swapper {
    /// Starts it; what is sent is read and brought back, in order. It ends when the sender is dropped.
    pub(crate) fn start(guest: Arc<Guest>) -> std::io::Result<(Self, SyncSender<Claim>)> {
        let (sender, receiver) = sync_channel(QUEUE);
        let builder = std::thread::Builder::new().name("page-swap-ins".into());
        let thread = builder.spawn(move || run(&guest, &receiver))?;
        Ok((Self { thread: Some(thread) }, sender))
    }

    /// Waits for its end.
    pub(crate) fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(guest: &Guest, claims: &Receiver<Claim>) {
    let mut buffer = Box::new([0; PAGE_SIZE]);
    let mut cpu = thread_cpu();
    for claim in claims {
        guest.bring_back_swapped(claim, &mut buffer);
        let now = thread_cpu();
        guest.counters.handler_cpu_ns.add((now - cpu).as_nanos() as u64);
        cpu = now;
    }
    if !guest.closing.load(Ordering::SeqCst) {
        fatal(format_args!("the fault handler hung up on the swap thread"));
    }
}
