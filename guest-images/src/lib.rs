//! Builds and caches guest kernels, initramfs and disks from Debian packages.

mod agent;
mod boot;
mod cache;
mod cpio;
pub mod debian;
mod error;
mod initramfs;
mod kernel;
mod modules;
mod tool;

pub use agent::AGENT;
pub use boot::Boot;
pub use cache::{Cache, Key};
pub use error::{Error, Result};
pub use kernel::{Flavour, Kernel};
pub use levy_agent as agent_protocol;
