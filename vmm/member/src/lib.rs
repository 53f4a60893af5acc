//! How does a VMM put its guest's memory under a Levy manager?
//!
//! This library is for any VMM: it uses neither KVM nor Levy's own machine, and its process is as trustworthy as the
//! guest that may have broken it.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use levy_member::{Introduction, ManagedMemory, ManagerClient, PlainMemory, PolledDuties};
//! use levy_protocol::link::Hello;
//! use page_share::{AnonymousMemory, Gfn};
//!
//! // The manager is asked before anything costs memory.
//! let hello = Hello::new("web-1", 64 << 20).with_min(16 << 20).in_domain("web");
//! let swap = "/var/tmp".as_ref();
//! let introduction = Introduction::make_swapping("/run/levy".as_ref(), hello, swap)?;
//! // Of a VMM that has mapped its memory already: `MemoryRange::adopt`, or `all_of_vm_memory`.
//! let ram = AnonymousMemory::new(16 << 10)?;
//! let memory = PlainMemory::new(vec![ram.range(Gfn::new(0))]);
//! let managed = ManagedMemory::start(&Arc::new(memory), Some(swap.into()))?;
//! let duties = PolledDuties::default();
//! let client = ManagerClient::start(introduction, managed, Box::new(duties.clone()))?;
//! while !duties.stop_asked() {
//!     // The guest runs; its balloon and its pauses are seen to.
//! }
//! client.leave();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Nouns
//! - [`Memory`], [`PlainMemory`]: the guest's RAM as the VMM hands it over.
//! - [`ManagedMemory`]: that RAM as a [`page_share::Region`], and the thread that scans it. Without a manager, pages of
//!   zeros are still given back.
//! - [`SharedReadBlocks`]: which pages are probably other guests' too, for a VMM whose disks know.
//! - [`Introduction`]: a guest that a manager has admitted.
//! - [`ManagerClient`]: reports once a second, does what the orders say, and finds the next manager when one goes. Its
//!   thread owns a *session*, which outlives managers.
//! - [`Duties`]: what orders ask of the VMM besides memory. A VMM with a main loop looks into [`PolledDuties`].
//! - *Limit controller*: decides what the manager's limit demands of this process. Pure: [`std::time::Instant`]s and
//!   counts go in, a step comes out.
//! - *Limit thread*: looks at what the process holds, asks the controller, and carries its step out.
//! - *Reclaimer*: compresses and swaps pages, on an order and to make room within the limit.
//! - [`Threads`]: tells the VMM of each thread, so that it can confine it.
//!
//! # Who owns whom
//! ```text
//! ManagerClient ── thread ── session ── ManagedMemory ── Region, scan thread, the VMM's Memory
//!                                   ├── LimitThread ──── LimitController ── lease, guarantee, what the manager was told
//!                                   │               ├─── Reclaimer (shares Region and controller)
//!                                   │               └─── Outgoing: the connection's writing half, shared by both threads
//!                                   ├── Sampler
//!                                   └── Box<dyn Duties>
//! ```
//!
//! Everything ends with the session, and the session with [`ManagerClient::leave`] or with the process. The memory may
//! be unmapped once the last clone of the region is gone.
//!
//! # Invariants
//! 1. Once a manager has set a limit the process is never without one again: it holds for a minute without a manager,
//!    and then what is held is the limit. Only a manager that is there lifts it.
//! 2. Behind a closed gate the guest grows by the room there is, page by page, and no further.
//! 3. What is guaranteed to the guest is neither compressed nor swapped, whatever the limit and the orders say (but for
//!    a 64th of it, at most 1 MiB, that is exchanged).
//! 4. An access that waits for memory is never left to a manager for longer than 100 ms where the guest has pages to
//!    spare, and never for longer than about 10 s where the guest has less than its minimum.
//! 5. Neither thread waits for a manager that does not read. What it was not told is told again.
//! 6. An order's limit holds before anything else of that order is done.
//!
//! # Known holes
//! - While the gate is open growth is not counted. How fast a guest may grow is measured once, by one thread. A guest
//!   with many processors can be faster, and pass its limit until the next look (5 to 200 ms); then it reclaims.
//! - What the VMM allocates for itself counts against the limit and cannot be gated. Only the guest's pages make up for it.
//! - [`Duties`] are called on the client's thread: one that takes long holds up the next orders and reports. The limit
//!   holds meanwhile.
//! - Counting a guest's pages takes time in proportion to its size, at each look at a closed gate and for every 64 pages
//!   that are taken.
//! - A process is one guest. What it holds is counted as a whole.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![forbid(unsafe_code)]

mod figures;
mod introduction;
mod inventory;
mod limit_controller;
mod limit_thread;
mod manager_client;
mod memory;
mod outgoing;
mod polled_duties;
mod reclaimer;
mod sampler;
mod shared_read_blocks;
mod swap_folder;
#[cfg(test)]
mod test_guest;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use page_share::{AdoptError, Blocks, Options, Pace, Region, ScanThread, Stats, ThreadStarted};

use levy_protocol::link::SwapRoom;
use levy_protocol::not_started;
use swap_folder::SwapFolder;

// Their types are part of this interface.
pub use {levy_protocol, page_share};

pub use figures::PageFigures;
pub use introduction::{ConnectError, Introduction};
pub use inventory::{Inventory, Key, Kind};
pub use manager_client::{Duties, ManagerClient};
pub use memory::{Memory, PlainMemory};
pub use polled_duties::PolledDuties;
pub use shared_read_blocks::SharedReadBlocks;

/// Part of a guest's memory that the compressed store may take, as a divisor.
const STORE_PART: u64 = 4;

/// Bytes that the compressed store of a guest of `bytes` maps beside the guest's memory: what a process may map
/// (RLIMIT_DATA) must hold both.
pub const fn store_bytes(bytes: u64) -> u64 {
    bytes / STORE_PART
}

/// Why a guest's memory cannot be managed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManageError {
    /// The kernel lacks something, or the memory is of the wrong kind.
    #[error(
        "this guest's memory cannot be managed, so no budget can hold it; to run the guest all the same, unmanaged and \
         outside every budget, give `levy run` --manager none, or leave --manager out of `levy vmm`"
    )]
    Adopt(#[from] AdoptError),
    /// The swap file cannot be made.
    #[error("cannot make a swap file in {dir}; give another --swap", dir = dir.display())]
    Swap {
        /// Where.
        dir: PathBuf,
        /// The reason.
        #[source]
        source: page_share::SwapError,
    },
    /// The system refuses a thread.
    #[error("cannot start a thread for this guest's memory")]
    Thread(#[source] io::Error),
}

/// Tells what the system has too little of from what it cannot do.
fn refused(error: AdoptError) -> ManageError {
    match error {
        AdoptError::System { source, .. } if source.raw_os_error() == Some(libc::EAGAIN) => {
            ManageError::Thread(not_started(source))
        }
        error => error.into(),
    }
}

/// What is called first on each thread that this library starts: for a VMM that confines its threads.
#[derive(Debug, Clone, Copy, Default)]
pub struct Threads {
    /// On the threads of the region.
    pub region: ThreadStarted,
    /// On this library's own.
    pub own: Option<fn(OwnThread)>,
}

/// A thread of this library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnThread {
    /// Talks to the manager, compresses and swaps.
    ManagerClient,
    /// Keeps the process within its limit.
    LimitController,
}

impl Threads {
    fn started(self, thread: OwnThread) {
        if let Some(own) = self.own {
            own(thread);
        }
    }
}

/// What manages one guest's memory.
///
/// Dropping it stops the scan; the guest must have ended before, its memory is not brought back.
#[derive(Debug)]
pub struct ManagedMemory {
    region: Arc<Region>,
    scan: ScanThread,
    /// The memory stays for as long as anything works on it.
    memory: Arc<dyn Memory>,
    threads: Threads,
    /// None without one, or where it cannot be asked what fits there: then the manager hears nothing of it.
    swap: Option<SwapFolder>,
}

impl ManagedMemory {
    /// Adopts `memory` and starts scanning it at the default pace. `swap` is where a swap file may grow, if anywhere.
    ///
    /// Memory starts out as the kernel has it, in blocks that nothing watches, so that a boot costs what it costs without
    /// us; [`Region::split_blocks`] puts it under management.
    ///
    /// # Errors
    /// See [`ManageError`].
    pub fn start<M: Memory + 'static>(memory: &Arc<M>, swap: Option<PathBuf>) -> Result<Self, ManageError> {
        Self::start_with(memory, swap, Threads::default())
    }

    /// Like [`start`](Self::start); `threads` hears of every thread that is started.
    ///
    /// # Errors
    /// See [`ManageError`].
    pub fn start_with<M: Memory + 'static>(
        memory: &Arc<M>,
        swap: Option<PathBuf>,
        threads: Threads,
    ) -> Result<Self, ManageError> {
        let memory: Arc<dyn Memory> = Arc::clone(memory) as Arc<dyn Memory>;
        let bytes = memory.bytes();
        let folder = swap.as_deref().and_then(|dir| SwapFolder::open(dir).ok());
        let swap = swap
            .map(|dir| {
                page_share::Swap::create(&dir, u32::try_from(bytes / 4096).unwrap_or(u32::MAX))
                    .map_err(|source| ManageError::Swap { dir, source })
            })
            .transpose()?;
        let region = memory.adopt(
            Options::default()
                .with_blocks(Blocks::Huge)
                .with_store_bytes(store_bytes(bytes) as usize)
                .with_swap(swap)
                .with_thread_started(threads.region),
        );
        let region = region.map_err(refused)?;
        let scan = ScanThread::start(Arc::clone(&region), Pace::default())
            .map_err(|e| ManageError::Thread(not_started(e)))?;
        Ok(Self {
            region,
            scan,
            memory,
            threads,
            swap: folder,
        })
    }

    /// The memory's region.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Puts up to `blocks` blocks of 2 MiB under management, first those that hold what other guests probably have too.
    pub fn split_blocks(&self, blocks: u32) {
        self.memory.shared_read_blocks().split(&self.region, blocks);
    }

    /// What can still be swapped, where that is known.
    fn swap_room(&self, stats: &Stats) -> Option<SwapRoom> {
        let swapped = stats.swapped.saturating_mul(4096);
        self.swap.as_ref()?.room(swapped, stats.swap_spare_bytes).ok()
    }

    /// Changes how fast it is scanned.
    pub fn set_pace(&self, pace: Pace) {
        self.scan.set_pace(pace);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The example of the README runs with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
