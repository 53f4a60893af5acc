//! How does a host take memory back from a guest that has more than it needs, and give it again in time?
//!
//! This crate is the virtio-balloon of a VMM: the device that a guest's balloon driver talks to, the ports through
//! which frames go back to the host, the controller that decides how far to go, and a driver half to test it all
//! against in one process. It needs vm-memory and virtio-queue, no KVM, and no particular transport.
//!
//! # The hostile guest
//!
//! A guest controls the rings, every buffer, every notification, and the configuration fields that are its own.
//! Whatever it does with them, the device neither panics nor blocks nor allocates without bound, touches no memory but
//! the guest's, releases no frame that the guest did not name, and returns every buffer it took exactly once. What
//! makes no sense is counted and ignored; a ring that cannot be followed stops the device until the guest resets it.
//! No number of the guest decides anything for the host: its `actual` and its statistics are claims with an age. A
//! guest that names frames it still uses loses their contents, and harms only itself. `tests/hostile.rs` is the table
//! of lies; the fuzz targets `balloon-ring` and `balloon-schedule` try the others.
//!
//! # Nouns
//!
//! - [`Balloon`]: the device. A transport calls [`activate`](Balloon::activate),
//!   [`handle_queue_event`](Balloon::handle_queue_event), [`read_config`](Balloon::read_config),
//!   [`write_config`](Balloon::write_config) and [`reset`](Balloon::reset); a host sets a
//!   [target](Balloon::set_target) and asks for [statistics](Balloon::request_statistics).
//! - [`Frame`], [`Run`], [`FrameSet`]: 4 KiB frames of guest memory, runs of them, and which are in the balloon.
//! - [`Release`]: the port that gives frames back. [`release::Anonymous`], [`release::Memfd`] and
//!   [`release::Hugetlb`] implement it; so does anything that keeps guest pages in its own way.
//! - [`Interrupt`]: the port through which the device reaches its driver.
//! - [`controller::Controller`]: goals in, targets out; pure.
//! - [`driver`]: the other end of the rings, for tests and benches.
//! - [`Counters`]: everything that happened, as plain numbers.
//! - [`BalloonState`]: a device at rest.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//! use balloon_driver::driver::{Driver, Guest, Line};
//! use balloon_driver::{Balloon, Options, release::Anonymous};
//! use vm_memory::{GuestAddress, GuestMemoryMmap};
//!
//! // The VMM's part: memory, a device, and an interrupt line.
//! let memory: Arc<GuestMemoryMmap> = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)])?);
//! let mut device = Balloon::new(Options::default(), Anonymous::new(memory.clone())?);
//! let line = Arc::new(Line::default());
//!
//! // A guest appears; here it is the driver half, which keeps its rings in the first 4 MiB.
//! let features = device.features();
//! let driver = Driver::new(memory.clone(), GuestAddress(0), features)?;
//! let _ = device.activate(features, memory.clone(), driver.queues()?, line.clone())?;
//! let mut guest = Guest::new(memory, driver, line, (1024..4096).collect());
//!
//! // The host wants 1000 frames; the guest gives them.
//! device.set_target(1000)?;
//! while guest.ballooned() < 1000 {
//!     guest.step(&mut device)?;
//!     guest.kick(&mut device)?;
//! }
//! assert_eq!((device.ballooned(), device.actual()), (1000, 1000));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Invariants
//!
//! 1. Every head that comes off a ring goes back on it once, on every path; only the statistics queue keeps one.
//! 2. Only frames of the guest's own memory reach the release port, in sorted, disjoint runs of whole units.
//! 3. A released frame reads as zero until the guest writes it.
//! 4. The host's fields of the configuration change by the host's calls alone.
//! 5. Memory use is bounded by the size of the guest's memory: one bit per frame, and lists of fixed length.
//! 6. One event does a bounded amount of work; the rest is left for another and announced as [`Progress::More`].
//! 7. A reset, or a restart of the guest, empties the balloon.
//!
//! # Known holes
//!
//! - `VIRTIO_BALLOON_F_MUST_TELL_HOST` and the legacy interface are not offered.
//! - A guest whose driver gives each queue the fixed number of the specification works only when it takes all features
//!   that are offered; see [`features::queues`].
//! - Frames are 4 KiB on the host as well; hosts with larger pages are refused.
//! - A frame that the guest uses again without deflating first stays in the balloon's count until it deflates.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod chain;
mod config;
pub mod controller;
mod counters;
mod device;
pub mod driver;
pub mod features;
mod frame;
mod frame_set;
mod interrupt;
mod queues;
pub mod release;
mod ring;
mod rounds;
mod statistics;
mod store;

// Their types are part of this interface.
pub use {virtio_queue, vm_memory};

pub use config::{
    ACTUAL_OFFSET, CONFIG_SIZE, HINT_COMMAND_OFFSET, HINT_DONE, HINT_STOP, POISON_OFFSET, TARGET_OFFSET,
};
pub use counters::Counters;
pub use device::state::{BalloonState, BrokenState, DriverState, HintingPhase, HintingState, RoundState};
pub use device::{
    ActivateError, Balloon, DeviceError, Offer, Options, Progress, QUEUE_SIZE, StatisticsRequest,
};
pub use frame::{FRAME_SIZE, Frame, Run, merge_frames, merge_runs};
pub use frame_set::FrameSet;
pub use interrupt::Interrupt;
pub use release::Release;
pub use ring::RingError;
pub use statistics::{STATISTIC_SIZE, Statistics, Values, encode};

/// The example of the README runs with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
