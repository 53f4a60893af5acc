//! What a launch tells programs (`levy run --json`): one JSON object per line on standard output.

use std::fmt;

use levy_agent::Event as AgentEvent;
use levy_protocol::{GuestEvent, printable_json};
use serde::{Deserialize, Serialize};

use super::summary::Summary;

/// A line from a launcher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum LaunchEvent {
    /// A guest's agent said something.
    Agent {
        /// The guest's name.
        guest: String,
        /// What it said.
        line: AgentEvent,
    },
    /// Another process has taken the place of a guest's, which had asked for a restart.
    Restart {
        /// The guest's name.
        guest: String,
        /// How often it has restarted by now.
        restarts: u32,
    },
    /// The last line.
    Summary(Summary),
    /// A guest's process reported something, passed on.
    #[serde(untagged)]
    Guest(GuestEvent),
}

impl LaunchEvent {
    /// Reads a line; `None` when it is not JSON at all.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }
}

impl fmt::Display for LaunchEvent {
    /// The line, without its end; fields in alphabetical order, which is that of a JSON value's. Nothing in it steers a
    /// terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = serde_json::to_value(self).map_err(|_| fmt::Error)?;
        f.write_str(&printable_json(&value.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use levy_protocol::GuestState;
    use levy_protocol::outcome::Ending;

    use super::*;
    use crate::GuestSummary;

    /// Lines as users' scripts know them.
    const LINES: [&str; 5] = [
        r#"{"event":"state","guest":"g","ms":48,"state":"ready"}"#,
        r#"{"event":"agent","guest":"g","line":{"event":"progress","id":1,"ops":9776,"rate":9541.357,"run":"redis","seconds":1.0,"t":14941}}"#,
        r#"{"event":"restart","guest":"g","restarts":1}"#,
        r#"{"event":"summary","guests":[{"booted_ms":null,"complaints":[],"console":[],"message":"","name":"g","outcome":"stopped","ready_ms":5,"restarts":0,"started_ms":null,"state":"","stats":null,"status":0,"verdict":{"detail":"","event":"verdict","ok":true,"ops":3,"rate":3.0,"run":"churn","seconds":1.0,"unit":"pages"}}],"status":0}"#,
        r#"{"event":"news","guest":"g"}"#,
    ];

    #[test]
    fn lines_stay_as_users_know_them() {
        for line in LINES {
            assert_eq!(LaunchEvent::parse(line).unwrap().to_string(), line);
        }
        assert_eq!(LaunchEvent::parse("not JSON"), None);
    }

    #[test]
    fn each_line_is_the_event_that_it_should_be() {
        let events = LINES.map(|line| LaunchEvent::parse(line).unwrap());
        let [state, agent, restart, summary, news] = &events;
        assert!(matches!(
            state,
            LaunchEvent::Guest(GuestEvent::State {
                state: GuestState::Ready,
                ..
            })
        ));
        assert!(matches!(agent, LaunchEvent::Agent { line, .. } if line.id == Some(1)));
        assert!(matches!(restart, LaunchEvent::Restart { restarts: 1, .. }));
        let LaunchEvent::Summary(summary) = summary else {
            panic!("{summary:?}")
        };
        let guest = &summary.guests[0];
        assert_eq!(guest.outcome, Some(Ending::Stopped));
        assert_eq!(guest.verdict().map(|verdict| verdict.ops), Some(3));
        assert!(matches!(news, LaunchEvent::Guest(GuestEvent::Unknown(_))));
    }

    #[test]
    fn what_a_guest_says_steers_no_terminal() {
        let line = r#"{"event":"agent","guest":"g","line":{"event":"error","message":"\u009b2J\u007f\u202e","t":1}}"#;
        let event = LaunchEvent::parse(line).unwrap();
        assert_eq!(event.to_string(), line);
    }

    #[test]
    fn a_summary_with_less_in_it_is_one_too() {
        let line = r#"{"event":"summary","status":7,"guests":[{"name":"g","colour":"red"}]}"#;
        let guest = GuestSummary {
            name: "g".into(),
            ..GuestSummary::default()
        };
        let summary = Summary {
            guests: vec![guest],
            status: 7,
        };
        assert_eq!(LaunchEvent::parse(line), Some(LaunchEvent::Summary(summary)));
    }
}
