//! Guests that wait for memory and get none, and why.

use std::fmt;

use crate::guest_process::ManagedProcess;
use crate::member::Member;

/// Why a guest that waits for memory gets none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standstill {
    /// No more pages fit into its swap, by its word, and other guests give up nothing.
    SwapFull,
    /// It gives up no more pages, and other guests give up nothing.
    NothingFree,
}

impl Standstill {
    /// Why that guest stands still; none where it does not.
    pub fn of(member: &Member, process: &ManagedProcess) -> Option<Self> {
        member.stands_still().then_some(match process.swap {
            Some(swap) if swap.is_full() => Self::SwapFull,
            _ => Self::NothingFree,
        })
    }

    /// What to do about it.
    pub fn cure(self) -> &'static str {
        match self {
            Self::SwapFull => {
                "free space in its --swap folder, give the host a larger budget, or stop a guest"
            }
            Self::NothingFree => "give the host a larger budget, or stop a guest",
        }
    }
}

/// For people, and in the API.
impl fmt::Display for Standstill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SwapFull => "swap full",
            Self::NothingFree => "no memory is free",
        })
    }
}
