//! A guest's process, as its manager knows it.

use std::time::Instant;

use page_share::GuestProcess;

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
    /// Its process's number.
    pub pid: u32,
    /// Its process: only the proof that it is dead ends the guest and its references.
    pub process: GuestProcess,
    /// The sharing domain that it is in.
    pub sharing: Option<String>,
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
