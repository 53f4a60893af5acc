//! What the VMM itself reads of its guest's agent: that it has spoken, and that it is ready.

use std::sync::mpsc::Sender;

use serde::Deserialize;

use crate::event::Event;

/// Reads along. However much the agent says, it brings about one event of each kind.
#[derive(Debug)]
pub(super) struct AgentLines {
    events: Sender<Event>,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Silent,
    Spoke,
    Ready,
}

/// The part of a line that counts.
#[derive(Deserialize)]
struct AgentLine {
    event: String,
}

impl AgentLines {
    pub(super) fn new(events: Sender<Event>) -> Self {
        Self {
            events,
            progress: Progress::Silent,
        }
    }

    /// The agent said `line`.
    pub(super) fn heard(&mut self, line: &[u8]) {
        if self.progress == Progress::Silent {
            self.tell(Progress::Spoke, Event::AgentSpoke);
        }
        let is_ready = || serde_json::from_slice::<AgentLine>(line).is_ok_and(|line| line.event == "ready");
        if self.progress == Progress::Spoke && is_ready() {
            self.tell(Progress::Ready, Event::AgentReady);
        }
    }

    fn tell(&mut self, progress: Progress, event: Event) {
        self.progress = progress;
        // The supervisor is gone only when the machine is being taken down.
        let _ = self.events.send(event);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_flood_of_lines_is_two_events() {
        let (events, heard) = channel();
        let mut lines = AgentLines::new(events);
        for line in ["{\"event\":\"boot\"}\n", "no JSON\n", "{\"event\":\"ready\"}\n"] {
            (0..10_000).for_each(|_| lines.heard(line.as_bytes()));
        }
        let heard: Vec<_> = heard.try_iter().collect();
        assert!(
            matches!(heard[..], [Event::AgentSpoke, Event::AgentReady]),
            "{} events",
            heard.len()
        );
    }
}
