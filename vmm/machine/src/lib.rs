//! How does one unmodified Linux guest run on KVM, in a process of its own?
//!
//! This process is as trustworthy as the guest that may have broken it: it is confined, owns nothing but its guest, and
//! depends neither on the manager nor on the command line.
//!
//! # Nouns
//! - [`memory::GuestRam`]: the guest's memory, and the one door to its bytes.
//! - [`mod@layout`], [`boot`]: kernel, initrd, boot parameters, ACPI tables, entry state.
//! - [`vm`]: KVM, the bus, vCPU threads.
//! - [`virtio`]: devices, rings, and the transport that the guest finds them by.
//! - [`event::Event`]: what happens to a guest; [`supervisor`]: one guest's life, watched by one thread.
//! - [`control`]: the socket on which the process is asked.
//! - [`confine`]: what each thread may do; [`process`]: signals, logs, the launcher.
//! - [`config`]: what a guest is made of, as its user writes it.
//!
//! ```
//! use levy_machine::config::{DiskConfig, MemoryConfig};
//!
//! let memory: MemoryConfig = "size=512M".parse()?;
//! assert_eq!(memory.bytes, 512 << 20);
//! let error = "path=root.img,read_only=on".parse::<DiskConfig>().unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "unknown key \"read_only\" (did you mean readonly?); the keys are path, readonly, overlay, layer, latency"
//! );
//! # Ok::<(), levy_machine::config::OptionError>(())
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
//! Guests with more than 254 vCPUs, network offloads, restarts inside one process (a restart ends the process with its
//! own exit status; launchers start another one), and snapshots are not there.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod boot;
pub mod config;
pub mod confine;
pub mod control;
pub mod event;
pub mod layout;
mod lock;
pub mod memory;
mod outlet;
pub mod process;
pub mod supervisor;
pub mod virtio;
pub mod vm;
