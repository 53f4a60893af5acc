//! What keeps a bench from going on.

use std::io;
use std::time::Duration;

use levy_launcher::FleetError;
use levy_manager::registry::ChangeError;
use levy_protocol::control::ClientError;

/// Why a bench cannot go on.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum TestbedError {
    /// The manager does not start.
    #[error(transparent)]
    Manager(#[from] FleetError),
    /// A process cannot be started.
    #[error("cannot start a process for guest {name}")]
    Start {
        name: String,
        #[source]
        source: io::Error,
    },
    /// A guest ended without being asked to.
    #[error("guest {name} ended: {how}\n{console}")]
    Ended {
        name: String,
        how: String,
        console: String,
    },
    /// Something did not happen in time.
    #[error("{what}: not within {} seconds", after.as_secs())]
    Late { what: String, after: Duration },
    /// The agent cannot be reached.
    #[error("the agent of guest {name} cannot be told anything")]
    Agent {
        name: String,
        #[source]
        source: io::Error,
    },
    /// The agent did not do what it was asked.
    #[error("guest {name}: {message}")]
    Refused { name: String, message: String },
    /// A workload's verdict is bad: data was wrong, or it did not run.
    #[error("{run} in guest {name} failed: {detail}")]
    Failed {
        name: String,
        run: String,
        detail: String,
    },
    /// What was written is not a workload.
    #[error("{0}")]
    Workload(String),
    /// The VMM does not do what it was asked.
    #[error("guest {name}")]
    Control {
        name: String,
        #[source]
        source: ClientError,
    },
    /// The manager refuses a change.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The bench itself cannot go on.
    #[error("{0}")]
    Impossible(String),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}
