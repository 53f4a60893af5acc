//! Content-based page sharing, sampling, compression and swap for memory that a VMM owns.

mod counts;
mod domain;
mod guest;
mod hash;
mod index;
mod local;
mod page;
mod placement;
mod pool;
pub mod port;
mod publish;
mod region;
mod socket;
mod sparse;
mod store;
mod swap;
pub mod wire;

pub use domain::{Counters, Domain, Sizes};
pub use hash::{DomainKey, PageHash, PageHasher, Sketch};
pub use local::{LocalManager, LocalPort};
pub use page::{Gfn, GuestId, PAGE_SHIFT, PAGE_SIZE, Page, PoolGeneration, Slot};
pub use pool::EXTENT_SLOTS;
pub use region::{
    AdoptError, AnonymousMemory, Blocks, MemoryRange, Options, Pace, PageRun, Pin, Region, Release, Sample,
    ScanThread, State, Stats, Step, SwapOutError,
};
pub use socket::{PATIENCE, Peer, ServeError, SocketPort, serve};
pub use store::{COMPRESSED_LIMIT, Compressed, Compressor, Store, StoreError, StoreHandle};
pub use swap::{Located, Swap, SwapError, SwapSlot};
