//! What a guest's process reports to its launcher: one JSON object per line, on its standard output.
//!
//! ```text
//! {"event":"state","guest":"web-1","ms":48,"state":"running"}
//! {"event":"ended","guest":"web-1","message":"the guest switched itself off","outcome":"powered_off","status":0}
//! ```
//!
//! Programs of different versions meet here, so nothing is refused: a field that the reader does not know is ignored,
//! a word that it does not know stays as it came, and so does a whole event ([`GuestEvent::Unknown`]). Fields are
//! written in alphabetical order, which users' scripts may have come to rely on.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::outcome::Ending;
use crate::printable_json;

/// A line from a guest's process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum GuestEvent {
    /// The guest came into a state.
    State {
        /// The guest's name.
        guest: String,
        /// Milliseconds since its process started.
        ms: u64,
        /// The state.
        state: GuestState,
    },
    /// The guest has ended; its process is about to.
    Ended {
        /// The guest's name.
        guest: String,
        /// How, in a sentence.
        message: String,
        /// How, in a word.
        outcome: Ending,
        /// Exit status of its process.
        status: u8,
    },
    /// The guest could not be started.
    Failed {
        /// The guest's name.
        guest: String,
        /// Why not.
        message: String,
        /// Exit status of its process.
        status: u8,
    },
    /// What this version does not know.
    #[serde(untagged)]
    Unknown(Value),
}

/// How far a guest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestState {
    /// Its vCPUs run.
    Running,
    /// Its agent has spoken.
    Booted,
    /// Its agent takes commands.
    Ready,
    /// Its kernel panicked.
    Panicked,
    /// Its vCPUs stand still. Told when asked, not reported.
    Paused,
    /// It was asked to switch itself off. Told when asked, not reported.
    Stopping,
    /// What this version does not know.
    #[serde(untagged)]
    Other(String),
}

impl GuestEvent {
    /// Reads a line; `None` when it is not JSON at all.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}

impl fmt::Display for GuestEvent {
    /// The line, without its end. Nothing in it steers a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        f.write_str(&printable_json(&line))
    }
}

impl fmt::Display for GuestState {
    /// The word that stands for it on the wire.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Booted => "booted",
            Self::Ready => "ready",
            Self::Panicked => "panicked",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Other(word) => word,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(state: GuestState) -> GuestEvent {
        GuestEvent::State {
            guest: "g".into(),
            ms: 48,
            state,
        }
    }

    /// Every event and its line, as users' scripts know it.
    fn lines() -> [(GuestEvent, &'static str); 4] {
        let guest = || "g".to_owned();
        [
            (
                state(GuestState::Running),
                r#"{"event":"state","guest":"g","ms":48,"state":"running"}"#,
            ),
            (
                GuestEvent::Ended {
                    guest: guest(),
                    message: "the guest switched itself off".into(),
                    outcome: Ending::PoweredOff,
                    status: 0,
                },
                r#"{"event":"ended","guest":"g","message":"the guest switched itself off","outcome":"powered_off","status":0}"#,
            ),
            (
                GuestEvent::Failed {
                    guest: guest(),
                    message: "no \"kernel\"".into(),
                    status: 1,
                },
                r#"{"event":"failed","guest":"g","message":"no \"kernel\"","status":1}"#,
            ),
            (
                GuestEvent::Unknown(serde_json::json!({"event": "migrated", "guest": "g"})),
                r#"{"event":"migrated","guest":"g"}"#,
            ),
        ]
    }

    #[test]
    fn lines_stay_as_users_know_them() {
        for (event, line) in lines() {
            assert_eq!(event.to_string(), line);
            assert_eq!(GuestEvent::parse(line), Some(event));
        }
    }

    #[test]
    fn no_line_steers_a_terminal() {
        let GuestEvent::Failed { guest, status, .. } = lines()[2].0.clone() else {
            panic!()
        };
        let message = "\u{9b}2J\u{7f}\u{202e}".to_owned();
        let event = GuestEvent::Failed {
            guest,
            message,
            status,
        };
        let line = event.to_string();
        assert!(line.contains(r#""\u009b2J\u007f\u202e""#), "{line}");
        assert_eq!(GuestEvent::parse(&line), Some(event));
    }

    #[test]
    fn words_are_the_same_on_the_wire_and_for_people() {
        let known = [
            GuestState::Running,
            GuestState::Booted,
            GuestState::Ready,
            GuestState::Panicked,
            GuestState::Paused,
            GuestState::Stopping,
            GuestState::Other("thawing".into()),
        ];
        for word in known {
            assert_eq!(serde_json::json!(word), word.to_string());
        }
    }

    #[test]
    fn what_another_version_says_is_kept() {
        let more = r#"{"event":"state","guest":"g","ms":48,"state":"running","cpus":2}"#;
        assert_eq!(GuestEvent::parse(more), Some(state(GuestState::Running)));
        let other = r#"{"event":"state","guest":"g","ms":48,"state":"thawing"}"#;
        assert_eq!(
            GuestEvent::parse(other),
            Some(state(GuestState::Other("thawing".into())))
        );
        let less = GuestEvent::parse(r#"{"event":"state","guest":"g"}"#);
        assert!(matches!(less, Some(GuestEvent::Unknown(_))), "{less:?}");
        let ended = r#"{"event":"ended","guest":"g","message":"m","outcome":"evaporated","status":9}"#;
        let Some(event @ GuestEvent::Ended { .. }) = GuestEvent::parse(ended) else {
            panic!("an end is an end");
        };
        assert_eq!(event.to_string(), ended);
        assert_eq!(GuestEvent::parse("levy: hello"), None);
    }
}
