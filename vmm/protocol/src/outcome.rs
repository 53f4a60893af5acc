//! How a guest ended.

use serde::{Deserialize, Serialize};

/// The end of a guest, as its supervisor and its exit status tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest switched itself off.
    PoweredOff,
    /// The host asked the guest to end, and it did.
    Stopped,
    /// The host took the guest down without its consent, as it was asked to.
    Killed,
    /// The guest asked for a restart.
    Rebooted,
    /// The guest's kernel panicked.
    Panicked {
        /// The kernel's own words, where the console showed them.
        message: String,
    },
    /// The guest did not do what it should within its deadline.
    Hung {
        /// What was waited for, and what the vCPUs were doing instead.
        message: String,
    },
    /// A vCPU came into a state that it cannot go on from.
    Crashed {
        /// What KVM said.
        message: String,
    },
}

/// The end of a guest in a word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// [`Outcome::PoweredOff`].
    PoweredOff,
    /// [`Outcome::Stopped`].
    Stopped,
    /// [`Outcome::Killed`].
    Killed,
    /// [`Outcome::Rebooted`].
    Rebooted,
    /// [`Outcome::Panicked`].
    Panicked,
    /// [`Outcome::Hung`].
    Hung,
    /// [`Outcome::Crashed`].
    Crashed,
    /// What this version does not know.
    #[serde(untagged)]
    Other(String),
}

impl Outcome {
    /// The same in a word.
    pub fn ending(&self) -> Ending {
        match self {
            Self::PoweredOff => Ending::PoweredOff,
            Self::Stopped => Ending::Stopped,
            Self::Killed => Ending::Killed,
            Self::Rebooted => Ending::Rebooted,
            Self::Panicked { .. } => Ending::Panicked,
            Self::Hung { .. } => Ending::Hung,
            Self::Crashed { .. } => Ending::Crashed,
        }
    }

    /// The exit status of a process whose guest ended this way.
    ///
    /// | 0 | off or stopped | 3 | restart | 4 | panic | 5 | hang | 6 | crash |
    /// |---|---|---|---|---|---|---|---|---|---|
    pub fn status(&self) -> u8 {
        match self {
            Self::PoweredOff | Self::Stopped | Self::Killed => 0,
            Self::Rebooted => 3,
            Self::Panicked { .. } => 4,
            Self::Hung { .. } => 5,
            Self::Crashed { .. } => 6,
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PoweredOff => write!(f, "the guest switched itself off"),
            Self::Stopped => write!(f, "the guest was stopped and switched itself off"),
            Self::Killed => write!(f, "the guest was taken down"),
            Self::Rebooted => write!(f, "the guest asked for a restart"),
            Self::Panicked { message } => write!(f, "the guest's kernel panicked: {message}"),
            Self::Hung { message } => write!(f, "the guest hangs: {message}"),
            Self::Crashed { message } => write!(f, "the guest crashed: {message}"),
        }
    }
}
