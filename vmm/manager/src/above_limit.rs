//! Guests that stand above their limit, and why.

use std::fmt;

use crate::guest_process::ManagedProcess;
use crate::member::Member;

/// Why a guest's process holds more than its limit and comes no closer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AboveLimit {
    /// It is not connected.
    Away,
    /// No more pages fit into its swap, by its word.
    SwapFull,
    /// It does not say.
    Unknown,
}

impl AboveLimit {
    /// Why that guest does; none where it does not, or comes closer.
    pub fn of(member: &Member, process: &ManagedProcess) -> Option<Self> {
        member.is_stuck().then(|| match process {
            ManagedProcess { connected: false, .. } => Self::Away,
            ManagedProcess { swap: Some(swap), .. } if swap.is_full() => Self::SwapFull,
            _ => Self::Unknown,
        })
    }

    /// What to do about it.
    pub fn cure(self) -> &'static str {
        match self {
            Self::SwapFull => "free space in its --swap folder, or stop it",
            Self::Away | Self::Unknown => "see its process's log, or stop it",
        }
    }
}

/// For people, and in the API.
impl fmt::Display for AboveLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Away => "not connected",
            Self::SwapFull => "swap full",
            Self::Unknown => "gives up no more",
        })
    }
}
