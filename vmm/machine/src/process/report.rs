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
            ReportStyle::Json => line(&GuestEvent::State {
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
            ReportStyle::Json => line(&GuestEvent::Ended {
                guest: self.name.clone(),
                message: outcome.to_string(),
                outcome: outcome.ending(),
                status: outcome.status(),
            }),
        }
    }

    /// The guest could not be started.
    pub fn failed(&mut self, error: &dyn Error) {
        let message = error_chain(error);
        match self.style {
            ReportStyle::Text => say(format_args!("{}: {message}", self.name)),
            ReportStyle::Json => line(&GuestEvent::Failed {
                guest: self.name.clone(),
                message,
                status: 1,
            }),
        }
    }
}

fn line(event: &GuestEvent) {
    // A launcher that no longer listens must not end the guest, nor hold it.
    outlet::offer(io::stdout(), &format!("{event}\n"));
}
