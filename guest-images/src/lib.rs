//! Builds and caches guest kernels, initramfs and disks from Debian packages.

mod cache;
pub mod debian;
mod error;
mod kernel;
mod tool;

pub use cache::{Cache, Key};
pub use error::{Error, Result};
pub use kernel::{Flavour, Kernel};
