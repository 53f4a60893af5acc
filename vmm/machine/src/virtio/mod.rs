//! Virtio devices, the queues they share with the guest, and the transport the guest finds them by.
//!
//! - [`VirtioDevice`]: what a device is, whatever transport it is plugged into.
//! - [`Rings`]: the device's side of its queues. A chain taken from a ring always goes back to the guest.
//! - [`Plug`]: a device plugged in: its lock, its interrupt, and its thread while the guest's driver runs it.
//! - [`Mmio`]: the virtio-mmio register file over a [`Plug`].
//!
//! # What the guest controls, and what holds anyway
//! Every byte of the rings, descriptors, buffers and registers is the guest's and may change at any time. A chain is
//! copied out and checked before a device sees it ([`Malformed`] lists what is refused); lengths and addresses are
//! checked again at each access. A malformed queue puts its device into NEEDS_RESET, raises the configuration
//! interrupt, counts, and stops only that device; a reset by the driver brings it back. Devices work on their own
//! thread with bounded buffers and bounded turns (in buffers, bytes and time: [`Rings::is_spent`]), so that no queue content can stop a vCPU of this guest (other than
//! one that waits for the device) or anything outside it.

pub mod balloon;
pub mod blk;
mod chain;
pub mod console;
mod device;
mod figures;
mod mmio;
pub mod net;
mod plug;
mod ring;
pub mod rng;
#[cfg(test)]
mod testing;
mod wait;

pub use chain::{Chain, Malformed};
pub use device::{DeviceKind, Interest, VirtioDevice};
pub use figures::Figures;
pub use mmio::Mmio;
pub(crate) use mmio::QUEUE_NOTIFY;
pub use plug::{Interrupt, Plug, PlugStats};
pub use ring::{Fault, Rings, Turn};
