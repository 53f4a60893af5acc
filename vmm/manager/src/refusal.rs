//! What a manager refuses, and why.

use std::io;

use allocator::{AdmissionError, FleetError};

use crate::groups::GroupError;
pub use crate::own_swap::SwapShortage;
use crate::spare;
use levy_protocol::link::{NAME_RULE, VersionError};

/// Why a guest is not taken in.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// It speaks no version of the protocol that the manager speaks.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// A name that cannot be typed or shown.
    #[error("{0:?} is not a guest name: it takes {NAME_RULE}")]
    Name(String),
    /// The same of its sharing domain.
    #[error("{0:?} is not a domain name: it takes {NAME_RULE}")]
    DomainName(String),
    /// The name is in use.
    #[error("a guest called {0:?} is running already; choose another name or stop that one")]
    Taken(String),
    /// Its process runs a guest already: what that process holds would count twice.
    #[error("the process of this guest runs the guest {0:?} already; start another process for this one")]
    Second(String),
    /// A path that is longer than any.
    #[error("the path in `{0}` has more than 4096 bytes")]
    Path(&'static str),
    /// Shares of zero.
    #[error("shares must be at least 1 (low is 500, normal 1000, high 2000)")]
    Shares,
    /// It broke the rules lately.
    #[error("the guest's process was cut off for breaking the protocol; it may come back in {seconds} s")]
    Barred {
        /// Seconds left.
        seconds: u64,
    },
    /// Its group cannot be, or cannot take it in.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// It does not fit, or its limits contradict each other.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// Its own swap does not back its limits.
    #[error(transparent)]
    Swap(#[from] SwapShortage),
    /// The system has nothing left of what one more guest takes.
    #[error("the manager cannot take one more guest: {0}")]
    Shortage(String),
    /// Its sharing domain could not be set up.
    #[error("the sharing domain {domain:?} cannot take one more guest")]
    Domain {
        /// The domain.
        domain: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

impl AdmitError {
    /// The domain called `name` failed with `source`, which is not the domain's fault where a limit is reached.
    pub(super) fn domain(name: &str, source: io::Error) -> Self {
        match levy_protocol::cure(&source) {
            Some(_) => Self::Shortage(spare::reason(&source)),
            None => Self::Domain {
                domain: name.to_owned(),
                source,
            },
        }
    }
}

/// Why settings or limits stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// What was promised to the guests would not hold any more.
    #[error("that would break a promise: {0}")]
    Promise(AdmissionError),
    /// Nor could a guest swap what it may have to.
    #[error("that would break a promise: {0}; or end it with `levy stop {guest}`", guest = .0.guest)]
    Swap(#[from] SwapShortage),
    /// What guests can swap that outlived the manager before is not known yet.
    #[error(
        "that may break a promise to guests that are still to return, such as {0:?}: what they can swap is not known \
         yet; try again in 2 s"
    )]
    Awaited(String),
    /// A group's limits contradict themselves or its members'.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// No plan can be made.
    #[error(transparent)]
    Fleet(#[from] FleetError),
}
