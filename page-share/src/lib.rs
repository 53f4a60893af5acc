//! Which pages of many guests are equal, and how can they be one page, while all of them run?
//!
//! A VMM hands its guest's memory to a [`Region`], a manager keeps a [`Domain`] for guests that may share, and a
//! [`port::Port`] connects the two, in one process ([`LocalPort`]) or over a socket ([`SocketPort`]).
//!
//! # Nouns
//! - A **region** is one guest's memory under management: it finds written pages, names quiet ones, maps common
//!   copies, and takes pages away for sampling, compression and swap. It needs nothing but private anonymous memory.
//! - A **domain** is a set of guests that may share. It owns the **index** (who has which content) and the **pool**
//!   (one memfd of common copies, read-only for guests' processes). Its secret key names pages; two domains' names are
//!   unrelated.
//! - A **slot** is a page of the pool; a **reference** is a region's right to map it.
//! - A page is **private**, **shared** (a copy-on-write mapping of a slot), **broken** (shared, but the kernel has
//!   copied it at a write), **re-homed** (brought back from a mapping to memory of its own), and so on: [`State`].
//!
//! # Example
//! ```
//! use page_share::{AnonymousMemory, Domain, Gfn, LocalManager, Options, Region};
//!
//! let manager = LocalManager::new(Domain::new(1024)?);
//! let memory = AnonymousMemory::new(256)?;
//! (0..256).for_each(|page| memory.write_page(page, &[1; 4096]));
//!
//! let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default())?;
//! region.connect(Box::new(manager.attach(region.page_limit())?))?;
//! (0..3).for_each(|_| region.scan_pass());
//!
//! assert_eq!(region.stats().shared, 256);
//! assert_eq!(manager.with(|domain| domain.sizes().pool_pages), Some(1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Invariants
//! 1. A page's content is in exactly one place, which its state byte names. The byte changes by compare-exchange only.
//! 2. The thread that moved a page to [`State::InTransit`] makes every call that fills or empties it, settles it, and
//!    wakes the threads that faulted meanwhile. No other thread touches it.
//! 3. A page is mapped from the pool only after all 4096 bytes were compared while no thread could write it, and only
//!    with a reference that was granted before.
//! 4. A reference is returned only after its last mapping is gone.
//! 5. The fault handler waits for no lock that a user of guest memory holds, for no I/O and for no manager.
//! 6. Guest bytes are copied before they are looked at; no Rust reference points into guest memory.
//! 7. What would lose a page or show wrong bytes ends the process. What the kernel has no room for just now does not: it
//!    is undone, left for later, or asked for again.
//! 8. Descriptors that watch a guest close only after everything held was given back.
//!
//! # Lock order
//! Scanner, then engine, then store or swap file. The scanner never holds the engine lock while it calls the manager.
//! The handler takes the store's lock alone, for one page.
//!
//! # Known holes
//! - Memory that was not mapped with MAP_NORESERVE works, but its mappings do not join again after a re-home.
//! - A long run that comes late does not push out short ones when mappings are used up.
//! - A merged page whose mapping the kernel would not watch, for lack of memory say, can break without credit while
//!   growth is gated, until it is re-homed.
//! - The same user, or root, can reopen the pool for writing: confine the VMM with seccomp.
//! - vhost-user, VFIO, hugetlbfs and file-backed guest memory are refused or unsupported: they bypass page tables that
//!   this crate relies on.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod attach;
mod check;
mod counts;
mod death;
mod digest;
mod domain;
mod guest;
mod hash;
mod index;
#[cfg(feature = "lanes")]
mod lanes;
mod local;
mod page;
mod placement;
mod pool;
pub mod port;
mod publish;
mod region;
mod replicas;
mod socket;
mod sparse;
mod swap;
pub mod wire;

pub use attach::{Attachment, LocalGuest};
pub use death::{Dead, GuestProcess};
pub use domain::{Domain, DomainCounters, Sizes};
pub use hash::{DomainKey, PageHash, PageHasher, Sketch};
pub use local::{LocalManager, LocalPort};
pub use page::{Epoch, Gfn, GuestId, PAGE_SHIFT, PAGE_SIZE, Page, PoolGeneration, Slot};
pub use pool::{EXTENT_SLOTS, POOL_FILE, PoolLimit};
pub use region::{
    AdoptError, AnonymousMemory, Blocks, COMPRESSED_LIMIT, Compressed, Compressor, Growth, MemoryRange,
    Options, Pace, PageRun, Pin, PoolSize, Region, RegionThread, Release, Sample, ScanThread, State, Stats,
    Step, Store, StoreError, StoreHandle, SwapOutError, ThreadStarted,
};
pub use socket::{PATIENCE, Peer, ServeError, SocketPort, serve};
pub use swap::{Hole, Located, LocatedRun, READ_LIMIT, Swap, SwapError, SwapSlot};

/// The example of the README runs with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
