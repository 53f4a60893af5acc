//! What a VMM process says about its guest to the process that started it.

use std::error::Error;
use std::io::{self, Write};

use serde_json::{Value, json};

use levy_protocol::{error_chain, outcome::Outcome};

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
    pub fn state(&mut self, state: &str, ms: u64) {
        match self.style {
            ReportStyle::Text => eprintln!("levy: {}: {state} after {:.2} s", self.name, ms as f64 / 1000.0),
            ReportStyle::Json => {
                line(&json!({"event": "state", "guest": self.name, "state": state, "ms": ms}));
            }
        }
    }

    /// The guest has ended.
    pub fn ended(&mut self, outcome: &Outcome) {
        match self.style {
            ReportStyle::Text => eprintln!("levy: {}: {outcome}", self.name),
            ReportStyle::Json => line(&json!({
                "event": "ended", "guest": self.name, "outcome": outcome_name(outcome),
                "message": outcome.to_string(), "status": outcome.status(),
            })),
        }
    }

    /// The guest could not be started.
    pub fn failed(&mut self, error: &dyn Error) {
        match self.style {
            ReportStyle::Text => eprintln!("levy: {}: {}", self.name, error_chain(error)),
            ReportStyle::Json => {
                line(
                    &json!({"event": "failed", "guest": self.name, "message": error_chain(error), "status": 1}),
                );
            }
        }
    }
}

fn outcome_name(outcome: &Outcome) -> Value {
    json!(outcome)["outcome"].clone()
}

fn line(value: &Value) {
    // A launcher that no longer listens must not end the guest.
    let _ = writeln!(io::stdout(), "{value}");
}
