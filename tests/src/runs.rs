//! What runs in a guest.

use guest_images::agent_protocol::{Action, Event, Report, Verdict, Workload};

use crate::Guest;

impl Guest {
    /// Starts a workload, written as in `churn mib=32 seconds=5`, and returns its number.
    pub fn run(&mut self, words: &str) -> u64 {
        let mut parts = words.split_whitespace();
        let workload = Workload::from_words(parts.next().unwrap_or_default(), parts)
            .unwrap_or_else(|error| panic!("{words:?}: {error}"));
        self.command(Action::Run(workload))
    }

    /// Waits for the verdict of run number `id`.
    pub fn verdict(&mut self, id: u64) -> Verdict {
        let verdict = self.until("a verdict", |event| {
            if event.id != Some(id) {
                return None;
            }
            match &event.report {
                Report::Verdict(verdict) => Some(Ok(verdict.clone())),
                Report::Error { message } => Some(Err(message.clone())),
                _ => None,
            }
        });
        verdict.unwrap_or_else(|message| self.fail(&format!("run {id} failed: {message}")))
    }

    /// Waits until run number `id` has begun.
    pub fn started(&mut self, id: u64) {
        self.until("the start of a run", |event| {
            (event.id == Some(id) && matches!(event.report, Report::Started { .. })).then_some(())
        });
    }

    /// Waits until run number `id` has done more than it had by now.
    pub fn goes_on(&mut self, id: u64) {
        let ops = |event: &Event| match &event.report {
            Report::Progress { ops, .. } if event.id == Some(id) => Some(*ops),
            _ => None,
        };
        // What was said in the meantime waits unread: the first word may be an old one, its last is not.
        self.read_all();
        let before = self.until_next("progress", ops);
        self.until_next("more progress", |event| ops(event).filter(|&now| now > before));
    }

    /// Ends run number `id` early and waits for its verdict.
    pub fn finish(&mut self, id: u64) -> Verdict {
        self.ask(Action::Stop { target: id });
        self.verdict(id)
    }
}
