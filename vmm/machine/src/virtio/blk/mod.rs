//! virtio-blk: a disk (virtio 1.2, 5.2 "Block Device").
//!
//! - [`Block`]: the device; requests go through a bounded buffer, never through mapped or pinned guest memory.
//! - [`Disk`]: where the bytes are: [`RawDisk`] (a file) or [`OverlayDisk`] (a shared read-only file under a private
//!   layer of what this guest wrote).

mod device;
mod disk;
mod overlay;
mod request;
#[cfg(test)]
mod tests;

pub use device::{Block, BlockStats};
pub use disk::{Access, Disk, DiskError, RawDisk};
pub use overlay::OverlayDisk;
