//! virtio-console: a byte channel between the guest's agent and a client of a unix socket on the host
//! (virtio 1.2, 5.3 "Console Device"; one port, `/dev/hvc0` in the guest).
//!
//! The guest talks in lines. Whole lines wait for the reader in a [`Backlog`] of bounded size, where the oldest give
//! way: the guest's driver spins while a buffer is out, so output is always taken at once and a slow reader, or none,
//! never holds a vCPU.

mod backlog;
mod device;
#[cfg(test)]
mod tests;

pub use backlog::Backlog;
pub use device::{Console, ConsoleHandle, ConsoleStats, LineSink};
