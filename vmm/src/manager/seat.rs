//! A guest's process, as its manager knows it.

use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::api::types::Phase;
use crate::link::Orders;
use crate::manager::incidents::Conduct;

/// A guest's process and how it came here.
#[derive(Debug)]
pub struct Seat {
    /// The name given by whoever started it.
    pub name: String,
    /// The version of the protocol that it speaks with this manager.
    pub protocol: u32,
    /// Its process.
    pub pid: u32,
    /// Readable once the process is dead; only then its references go.
    pub process: OwnedFd,
    /// Its place in a sharing domain.
    pub sharing: Option<Place>,
    /// When it was admitted.
    pub since: Instant,
    /// Whether its connection stands.
    pub connected: bool,
    /// What it was last told.
    pub orders: Orders,
    /// Its control socket, for people.
    pub control: Option<String>,
    /// The fleet file that it was started from.
    pub fleet: Option<String>,
    /// What its virtual CPUs do: what they were last told from here, or what its process says.
    pub phase: Phase,
    /// What became of its connections.
    pub conduct: Conduct,
}

/// A place in a sharing domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The domain's name.
    pub domain: String,
    /// The guest's number there, once it has connected to the page socket.
    pub guest: Option<page_share::GuestId>,
}

/// Who a new guest is, as far as the kernel vouches for it.
#[derive(Debug)]
pub struct Process {
    /// Process number of the peer.
    pub pid: u32,
    /// Its pidfd.
    pub handle: OwnedFd,
}
