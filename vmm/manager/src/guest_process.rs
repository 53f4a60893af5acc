//! A guest's process, as its manager knows it.

use std::time::Instant;

use allocator::Pages;

use crate::member::Limits;
use crate::own_swap::OwnSwap;
use crate::penalty::Penalty;
use levy_protocol::api::Phase;
use levy_protocol::link::{Orders, PageCounts};

/// Names one process for as long as the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId {
    /// The process's number.
    pub pid: u32,
    /// When it started, in the kernel's clock ticks since the machine did.
    pub started: u64,
}

/// A guest's process and how it came here.
#[derive(Debug, Clone)]
pub struct ManagedProcess {
    /// The name that its launcher gave it.
    pub name: String,
    /// The version of the protocol that it speaks with this manager.
    pub protocol: u32,
    /// Which process it is: only the proof that it is dead ends the guest and its references.
    pub id: ProcessId,
    /// The sharing domain that it is in.
    pub sharing: Option<String>,
    /// When it was admitted.
    pub since: Instant,
    /// Whether its connection stands: from when it was told that it is admitted.
    pub connected: bool,
    /// The number of that connection.
    pub(super) connection: Option<u64>,
    /// What it was last told.
    pub orders: Orders,
    /// Its control socket, for people.
    pub control: Option<String>,
    /// The fleet file that it was started from.
    pub fleet: Option<String>,
    /// What its virtual CPUs do: what they were last told from here, or what its process says.
    pub phase: Phase,
    /// What became of its connections.
    pub penalty: Penalty,
    /// What of it is older than its manager.
    pub origin: Origin,
    /// What it can still swap; none where it does not say.
    pub(super) swap: Option<OwnSwap>,
}

/// What of a guest is older than its manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nothing: it was admitted by this manager.
    New,
    /// It was admitted by one before, and has not reported yet.
    Survivor,
    /// So it was, and had swapped so much when it was first heard.
    Swapped(Pages),
}

impl ManagedProcess {
    /// The process of the guest called `name`, which has come at `now` and speaks version `protocol`.
    pub(super) fn new(now: Instant, name: &str, id: ProcessId, protocol: u32) -> Self {
        Self {
            name: name.to_owned(),
            protocol,
            id,
            sharing: None,
            since: now,
            connected: false,
            connection: None,
            orders: Orders::default(),
            control: None,
            fleet: None,
            phase: Phase::Running,
            penalty: Penalty::default(),
            origin: Origin::New,
            swap: None,
        }
    }

    /// Takes in what a guest that came back has in its swap file. What was free there when its manager began did not
    /// count that; by its own word, but never more than it could have been promised.
    pub(super) fn brought(&mut self, limits: Limits, pages: &PageCounts) {
        if self.origin == Origin::Survivor {
            let most = limits.max.less(limits.min);
            self.origin = Origin::Swapped(Pages::new(pages.swapped).min(most));
        }
    }

    /// What it had swapped before its manager began.
    pub(super) fn swapped_before(&self) -> Pages {
        match self.origin {
            Origin::Swapped(pages) => pages,
            Origin::New | Origin::Survivor => Pages::ZERO,
        }
    }
}
