//! How do many unmodified Linux guests run on one KVM host, each in a process of its own?
//!
//! This library is the `levy` binary. One process per guest holds KVM, the guest's memory, its vCPUs and its devices;
//! a launcher starts such processes, talks with the agents inside the guests, and tells how they fare.
//!
//! # Nouns
//! - [`memory::GuestRam`]: the guest's memory, and the one door to its bytes.
//! - [`boot`]: kernel, initrd, boot parameters, ACPI tables, entry state.
//! - [`machine`]: KVM, the bus, vCPU threads; how a guest ends ([`machine::Outcome`]).
//! - [`virtio`]: devices, rings, and the transport that the guest finds them by.
//! - [`supervisor`]: one guest's life, watched by one thread.
//! - [`launcher`]: several guests, their agents and workloads.
//! - [`control`]: what can be asked of a running VMM; [`api`]: what can be asked of a running manager.
//! - [`config`]: what a guest is made of, as its user writes it; [`cli`]: the commands.
//! - [`doctor`]: what this machine can run; [`mod@bench`]: what guests together cost and gain on it.
//!
//! ```
//! use levy::config::{DiskConfig, MemoryConfig};
//!
//! let memory: MemoryConfig = "size=512M".parse()?;
//! assert_eq!(memory.bytes, 512 << 20);
//! let error = "path=root.img,read_only=on".parse::<DiskConfig>().unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "unknown key \"read_only\" (did you mean readonly?); the keys are path, readonly, overlay, layer, latency"
//! );
//! # Ok::<(), levy::config::OptionError>(())
//! ```
//!
//! # Invariants
//! 1. A guest ends its own process at most, never its host or another guest: everything it writes is checked where it
//!    is used, and a device whose rules it breaks waits for a reset ([`virtio`]).
//! 2. Guest bytes are copied in and out through [`memory::GuestRam::view`]; no Rust reference points at them, and
//!    nothing pins them (no direct I/O, no vhost).
//! 3. Every chain that a device takes from a queue goes back, on every path.
//! 4. A process that ends, however it ends, leaves no socket, tap, overlay or child behind, except sockets after
//!    SIGKILL, which the next start on the same path replaces.
//! 5. Nothing the host waits for is the guest's to withhold: pausing, stopping and asking have deadlines.
//!
//! # Known holes
//! Guests with more than 254 vCPUs, network offloads, restarts inside one process (a restart ends the VMM with its own
//! exit status; launchers start another one), and snapshots are not there.

pub mod api;
pub mod bench;
pub mod boot;
pub mod cli;
pub mod config;
pub mod confine;
pub mod control;
pub mod doctor;
pub mod engine;
pub mod launcher;
pub mod layout;
pub mod link;
pub mod machine;
pub mod manager;
pub mod memory;
pub mod process;
pub mod supervisor;
pub mod virtio;
