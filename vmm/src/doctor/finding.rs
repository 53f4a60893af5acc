//! One thing that was looked at.

use serde::Serialize;

/// How a finding bears on running guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Good,
    /// Guests run, something is less good than it could be; `next` says what.
    Advice,
    /// Something does not work here; `next` says what to do.
    Problem,
}

/// One thing that was looked at, what was found, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, as in "vm.max_map_count".
    pub name: &'static str,
    /// How it bears on running guests.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do next, where there is something to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Finding {
    pub(super) fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Good,
            found: found.into(),
            next: None,
        }
    }

    pub(super) fn advice(name: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Advice,
            found: found.into(),
            next: Some(next.into()),
        }
    }

    pub(super) fn problem(name: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Problem,
            found: found.into(),
            next: Some(next.into()),
        }
    }
}
