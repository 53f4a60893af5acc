//! How the device reaches its driver: the port that a transport implements.

use std::io;

/// The two notifications a virtio device sends. Both must return at once.
pub trait Interrupt: Send + Sync {
    /// Buffers of queue number `queue` were returned to the driver.
    ///
    /// # Errors
    /// When the interrupt cannot be raised.
    fn used_buffers(&self, queue: u16) -> io::Result<()>;

    /// The configuration space changed: the transport counts up its generation, then tells the driver.
    ///
    /// # Errors
    /// When the interrupt cannot be raised.
    fn config_changed(&self) -> io::Result<()>;
}
