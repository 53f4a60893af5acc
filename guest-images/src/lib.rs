//! Where do a guest's kernel, initramfs and disk come from? From Debian packages, built and cached here.
//!
//! - [`Cache`]: the directory of everything that was built. An entry is complete or absent.
//! - [`debian::Archive`]: Debian's packages by name, verified, without touching the system's package database.
//! - [`Kernel`]: a stock kernel with its modules. [`Boot`]: a kernel and the initramfs that fits it.
//! - [`Cpio`]: an archive that a kernel unpacks as its first root.
//! - [`Disk`]: a small Debian with the services that workloads need. [`Images`]: boot and disk.
//! - [`agent_protocol`]: what the host and the agent in the guest say to each other.
//!
//! ```no_run
//! use guest_images::{Cache, Flavour, Images};
//!
//! # fn main() -> guest_images::Result<()> {
//! let cache = Cache::of_user()?.on_progress(|line| eprintln!("{line}"));
//! let images = Images::ready(&cache, Flavour::default())?;
//! println!("{} {}", images.boot.kernel().display(), images.disk.image().display());
//! # Ok(())
//! # }
//! ```
//!
//! # Invariants
//! 1. Nothing is used that the archive's signed index does not vouch for: apt checks the signature with Debian's own
//!    keys, and every package file is hashed again before it is unpacked.
//! 2. An entry appears by a rename after everything in it is on disk. A failed, killed or raced build leaves none.
//! 3. An entry's name is a hash of what it is made of: package versions, agent, recipe. The same input builds once.
//! 4. A kernel and its initramfs are one entry: they cannot get out of step.
//! 5. The system's package database is only changed to install a missing tool, only as root, and it is announced.
//!
//! # Known holes
//! - x86-64 and Debian 12 guests only.
//! - The disk's bytes are not the same in two builds: PostgreSQL's cluster has an identity of its own.
//! - Without root the disk needs subordinate user ids and the package `uidmap`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![forbid(unsafe_code)]

mod agent;
mod boot;
mod cache;
pub mod cli;
mod cpio;
pub mod debian;
mod disk;
mod error;
mod images;
mod initramfs;
mod kernel;
mod modules;
mod privilege;
mod tool;
mod vmlinux;

pub use agent::AGENT;
pub use boot::Boot;
pub use cache::{Cache, Key};
pub use cpio::Cpio;
pub use disk::Disk;
pub use error::{Error, Result};
pub use images::Images;
pub use initramfs::busybox;
pub use kernel::{Flavour, Kernel};
pub use levy_agent as agent_protocol;
pub use modules::{Module, Modules};
