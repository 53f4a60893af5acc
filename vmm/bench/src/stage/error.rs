//! What keeps a bench from going on.

use std::io;
use std::time::Duration;

use levy_launcher::FleetError;
use levy_manager::registry::ChangeError;
use levy_protocol::control::ClientError;

/// Why a bench cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The manager does not start.
    #[error(transparent)]
    Manager(#[from] FleetError),
    /// A process cannot be started.
    #[error("cannot start a process for guest {name}")]
    Start {
        /// The guest.
        name: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// A guest ended without being asked to.
    #[error("guest {name} ended: {how}\n{console}")]
    Ended {
        /// The guest.
        name: String,
        /// In a sentence.
        how: String,
        /// The last lines of its console.
        console: String,
    },
    /// Something did not happen in time.
    #[error("{what}: not within {} seconds", after.as_secs())]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// The agent cannot be reached.
    #[error("the agent of guest {name} cannot be told anything")]
    Agent {
        /// The guest.
        name: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The agent did not do what it was asked.
    #[error("guest {name}: {message}")]
    Refused {
        /// The guest.
        name: String,
        /// Its words.
        message: String,
    },
    /// A workload's verdict is bad: data was wrong, or it did not run.
    #[error("{run} in guest {name} failed: {detail}")]
    Failed {
        /// The guest.
        name: String,
        /// The workload.
        run: String,
        /// Its words.
        detail: String,
    },
    /// What was written is not a workload.
    #[error("{0}")]
    Workload(String),
    /// The VMM does not do what it was asked.
    #[error("guest {name}")]
    Control {
        /// The guest.
        name: String,
        /// Why not.
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
