//! Debian packages by name, without touching the system's own package database.
//!
//! An [`Archive`] is a private apt directory tree inside the [`Cache`](crate::Cache): its own sources, indexes and downloads. apt
//! itself checks the archive's signatures against the Debian archive keys and every package against the signed
//! index; each file is hashed once more just before it is unpacked. Root is not needed.
//!
//! The address of the archive is the one that this machine's apt uses, or `LEVY_MIRROR`.
//!
//! ```no_run
//! use guest_images::{Cache, debian};
//!
//! # fn main() -> guest_images::Result<()> {
//! let cache = Cache::of_user()?.on_progress(|line| eprintln!("{line}"));
//! let archive = debian::Archive::open(&cache)?;
//! let qemu = archive.tree(&debian::Request {
//!     name: "qemu",
//!     packages: &["qemu-system-x86"],
//!     prefer: debian::Prefer::Backports,
//!     depth: debian::Depth::WithDependencies,
//! })?;
//! assert!(qemu.join("usr/bin/qemu-system-x86_64").exists());
//! # Ok(())
//! # }
//! ```

mod archive;
mod mirror;
mod package;

pub use archive::{Archive, Depth, Prefer, Request};
pub use mirror::{Mirror, Suite};
pub use package::Package;
