//! virtio-net: a network card on a tap interface (virtio 1.2, 5.1 "Network Device"), without offloads.
//!
//! - [`Net`]: the device; one receive and one transmit queue, frames copied through one bounded buffer.
//! - [`Tap`]: the interface on the host, taken by name or created for the guest's lifetime.

mod device;
mod tap;
#[cfg(test)]
mod tests;

pub use device::{FramePort, MacAddress, Net, NetStats};
pub use tap::{Subnet, Tap, TapError};
