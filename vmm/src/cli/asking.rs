//! What all commands that ask a manager have in common.

use std::path::PathBuf;

use serde::Serialize;

use super::fleet_file::FleetFileError;
use crate::out::{self, NotShown};
use levy_launcher::api_client::{Client, ClientError};
use levy_machine::process::say;

/// Which manager, and for whom the answer is.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Asking {
    /// Run directory of the manager [default: the running `levy host`, or the only `levy run` that brought its own]
    #[arg(long, value_name = "DIR")]
    pub(super) run_dir: Option<PathBuf>,
    /// Print JSON: one value on standard output
    #[arg(long)]
    pub(super) json: bool,
}

/// Why a command could not do what it was told.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Fleet(#[from] FleetFileError),
    #[error("no guest of {path} is running", path = path.display())]
    NoneRuns { path: PathBuf },
    #[error(transparent)]
    Shown(#[from] NotShown),
    #[error("{0}")]
    Usage(String),
    #[error("still running after {seconds} s: {names}; ask again, or `levy stop --force`")]
    StillThere { names: String, seconds: u64 },
}

impl Asking {
    pub(super) fn client(&self) -> Result<Client, AskError> {
        Ok(Client::find(self.run_dir.as_deref())?)
    }

    /// Shows `value` to programs, or `text` to people.
    pub(super) fn show(&self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), AskError> {
        let shown = match self.json {
            true => out::json(value),
            false => text(),
        };
        Ok(out::show(&shown)?)
    }
}

/// The exit status for what came of a command: 2 for wrong usage, 1 for everything else that went wrong.
pub(super) fn status(result: Result<(), AskError>) -> u8 {
    let Err(error) = result else { return 0 };
    say(levy_protocol::error_chain(&error));
    match error {
        AskError::Usage(_) => 2,
        _ => 1,
    }
}
