//! What happens to a manager, and what it wants done.

use std::collections::BTreeMap;
use std::time::Duration;

use allocator::{GuestId, Pages};
use log::Level;

use super::Snapshot;
use crate::kept::Kept;
use crate::pool_room::PoolRoom;
use crate::registry::{Applicant, Fate, LeftDomain, ProcessId};
use crate::survey::{Measured, Surveyed};
use levy_protocol::api::Phase;
use levy_protocol::link::{FromManager, LimitStatus, Limits, Report, Welcome};

/// The number of a connection: no two have the same.
pub type ConnectionId = u64;

/// What happened. Whatever is said here of processes, sockets and memory was found out before, by the kernel's word.
#[derive(Debug)]
pub enum Event {
    /// The manager before left this; what is known of its guests' processes.
    TookOver(Kept, BTreeMap<ProcessId, Fate>),
    /// More is known of processes of guests of the manager before.
    Found(BTreeMap<ProcessId, Fate>),
    /// A process that [`Manager::lets_connect`](super::Manager::lets_connect) let in has connected.
    Connected {
        /// Its connection.
        connection: ConnectionId,
        /// Its number.
        pid: u32,
    },
    /// A process introduced itself.
    Introduced {
        /// On this connection.
        connection: ConnectionId,
        /// What it is; or why that could not be found out.
        applicant: Result<Applicant, String>,
        /// The connection before of the guest with its name is closed.
        hung_up: bool,
    },
    /// Something else was read from a connection.
    Said(ConnectionId, Heard),
    /// This is written down for the next manager.
    Persisted(Snapshot),
    /// A welcome did not go out.
    Unwelcomed(ConnectionId, String),
    /// The thread that reads connections has read all there was.
    Listened,
    /// A message to a guest did not go out: it has no connection, or for this reason.
    Unsent(GuestId, Option<String>),
    /// A guest was told to bring its virtual CPUs into this phase.
    Directed(GuestId, Phase),
    /// Guests have other limits than they were told.
    LimitsChanged(Vec<GuestId>),
    /// A connection for pages ended.
    PagesEnded {
        /// Whose it was, if it was a sharing guest's.
        guest: Option<GuestId>,
        /// Why.
        reason: String,
        /// Its process broke the rules.
        offence: bool,
    },
    /// The process of a guest is dead: the kernel says so.
    Died(GuestId),
    /// Time passes.
    Clock,
    /// What was to be measured.
    Measured(Measured),
    /// All effects of a round are carried out.
    RoundEnded {
        /// CPU time that it took.
        cpu: Duration,
        /// From its begin to its end.
        work: Duration,
    },
    /// The system refused something that serving one more guest takes.
    Starved {
        /// What could not be done.
        what: String,
        /// Why.
        reason: String,
    },
    /// A guest's process asked at the API.
    Intruded(u32),
}

/// What was read from a connection.
#[derive(Debug)]
pub enum Heard {
    /// A report, which took so many microseconds to come.
    Report(Box<Report>, Option<u64>),
    /// What holds as a limit.
    LimitStatus(LimitStatus),
    /// A message of a later version.
    Unknown,
    /// It is closed.
    Closed,
    /// It broke.
    Broken(String),
    /// No message of the protocol.
    Malformed(String),
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Watch this process: it runs this guest.
    Watch(GuestId, ProcessId),
    /// Forget a guest whose process is dead, with its references.
    Forget(GuestId, Option<LeftDomain>),
    /// Write down what the next manager has to know.
    Persist,
    /// Tell a guest that it is admitted; its connection is this one from then on.
    Welcome {
        /// Its connection.
        connection: ConnectionId,
        /// The guest.
        guest: GuestId,
        /// What it hears.
        welcome: Welcome,
        /// Its limits, where it believes in others.
        limits: Option<Limits>,
    },
    /// Send a message to an admitted guest.
    Send(GuestId, FromManager),
    /// Send a message on a connection that is no guest's.
    Reply(ConnectionId, FromManager),
    /// Close a connection.
    Close(ConnectionId),
    /// End both connections of a guest.
    HangUp(GuestId),
    /// A round is due earlier than it was.
    StartEarlier,
    /// Let `memory.high` follow the budget, bytes, and what each guest may hold, once it was given a limit.
    FollowBudget(u64, BTreeMap<GuestId, Option<u64>>),
    /// Ask the kernel what these processes hold, so long after that was asked last.
    Measure(Vec<Surveyed>, Duration),
    /// Let pools grow into this; those of managers that are gone hold the second.
    LimitPools(PoolRoom, Pages),
    /// Write a line to the log.
    Log(Level, String),
}
