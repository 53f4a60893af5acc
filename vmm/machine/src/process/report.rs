//! What a VMM process says about its guest to the process that started it.

use std::error::Error;
use std::io;

use levy_protocol::outcome::Outcome;
use levy_protocol::{GuestEvent, GuestState, error_chain};

use super::say::say;
use crate::outlet;

/// For people or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ReportStyle {
    /// Sentences on standard error.
    Text,
    /// A JSON object per line on standard output.
    Json,
}

/// Tells how a guest fares.
#[derive(Debug)]
pub struct Report {
    name: String,
    style: ReportStyle,
}

impl Report {
    /// A report about the guest called `name`.
    pub fn new(name: &str, style: ReportStyle) -> Self {
        Self {
            name: name.to_owned(),
            style,
        }
    }

    /// The guest came into `state`, `ms` milliseconds after its process started.
    pub fn state(&mut self, state: GuestState, ms: u64) {
        match self.style {
            ReportStyle::Text => say(format_args!(
                "{}: {state} after {:.2} s",
                self.name,
                ms as f64 / 1000.0
            )),
            ReportStyle::Json => tell(&GuestEvent::State {
                guest: self.name.clone(),
                ms,
                state,
            }),
        }
    }

    /// The guest has ended.
    pub fn ended(&mut self, outcome: &Outcome) {
        match self.style {
            ReportStyle::Text => say(format_args!("{}: {outcome}", self.name)),
            ReportStyle::Json => tell(&bounded(&outcome.to_string(), |message| GuestEvent::Ended {
                guest: self.name.clone(),
                message,
                outcome: outcome.ending(),
                status: outcome.status(),
            })),
        }
    }

    /// The guest could not be started.
    pub fn failed(&mut self, error: &dyn Error) {
        let message = error_chain(error);
        match self.style {
            ReportStyle::Text => say(format_args!("{}: {message}", self.name)),
            ReportStyle::Json => tell(&bounded(&message, |message| GuestEvent::Failed {
                guest: self.name.clone(),
                message,
                status: 1,
            })),
        }
    }
}

/// The event with as much of `message` as a line has room for that a reader may have to take at once.
fn bounded(message: &str, event: impl Fn(String) -> GuestEvent) -> GuestEvent {
    let whole = event(message.to_owned());
    // As JSON no letter is shorter than it is in the text.
    match (whole.to_string().len() + 1).saturating_sub(outlet::AT_ONCE) {
        0 => whole,
        over => event(outlet::cut(message, message.len().saturating_sub(over))),
    }
}

fn tell(event: &GuestEvent) {
    // A launcher that no longer listens must not end the guest, nor hold it.
    outlet::offer(io::stdout(), &event.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_any_length_are_whole_lines_that_a_pipe_takes_at_once() {
        for letter in ["x", "ü", "\u{1}", "\""] {
            for count in [1, 4000, 5000, 100_000] {
                let text = letter.repeat(count);
                let event = bounded(&text, |message| GuestEvent::Failed {
                    guest: "g".repeat(64),
                    message,
                    status: 1,
                });
                let line = event.to_string();
                assert!(line.len() < outlet::AT_ONCE, "{letter:?} {count}");
                let Some(GuestEvent::Failed { message, .. }) = GuestEvent::parse(&line) else {
                    panic!("{line}");
                };
                assert!(message == text || message.ends_with("bytes more)"), "{message}");
            }
        }
    }
}
