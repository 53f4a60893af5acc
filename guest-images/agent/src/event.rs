//! What the agent reports to the host.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A line from the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since the guest's kernel started (its monotonic clock).
    pub t: u64,
    /// The command this answers, if any. Runs asked for on the kernel's command line have id 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// What is reported.
    #[serde(flatten)]
    pub report: Report,
}

/// What an event reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Report {
    /// The first line: the kernel is up, the agent runs, the channel works.
    Boot {
        /// The agent's version.
        agent: String,
        /// The kernel's release.
        kernel: String,
    },
    /// Commands are obeyed from here on.
    Ready {
        /// "initramfs", or the device of the root disk.
        root: String,
        /// The device of this channel.
        channel: String,
        /// CPUs online.
        cpus: u32,
        /// The guest's MemTotal in KiB.
        memory_kib: u64,
    },
    /// A run began.
    Started {
        /// The workload's name.
        run: String,
    },
    /// Once a second while a run goes on.
    Progress {
        /// The workload's name.
        run: String,
        /// Seconds since it began.
        seconds: f64,
        /// Operations so far; the verdict names their unit.
        ops: u64,
        /// Operations per second since the last progress line.
        rate: f64,
    },
    /// Something of interest inside a run, or about the system.
    Stats {
        /// What it is about, as in "written".
        name: String,
        /// The figures.
        values: Map<String, Value>,
    },
    /// The end of a run: exactly one per run.
    Verdict(Verdict),
    /// A command was obeyed.
    Done {
        /// Its result, by name; empty for most.
        values: Map<String, Value>,
    },
    /// A command was not obeyed, or something went wrong by itself.
    Error {
        /// What and why.
        message: String,
    },
}

/// What a run found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The workload's name.
    pub run: String,
    /// Everything was as it had to be, every byte that was checked included.
    pub ok: bool,
    /// Operations done.
    pub ops: u64,
    /// What an operation is, as in "transactions".
    pub unit: String,
    /// Seconds of measured work, set-up left out.
    pub seconds: f64,
    /// Operations per second of measured work.
    pub rate: f64,
    /// Empty, or what was wrong, or further results.
    pub detail: String,
}

impl Event {
    /// Reads a line; a [`CONSOLE_PREFIX`](crate::CONSOLE_PREFIX) before it is skipped.
    ///
    /// # Errors
    /// It is not an event.
    pub fn parse(line: &str) -> Result<Self, serde_json::Error> {
        let line = line.trim();
        serde_json::from_str(line.strip_prefix(crate::CONSOLE_PREFIX).unwrap_or(line))
    }

    /// The line, newline included.
    ///
    /// # Panics
    /// Never: all fields have JSON forms.
    pub fn to_line(&self) -> String {
        let mut line = serde_json::to_string(self).expect("plain data has a JSON form");
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict() -> Verdict {
        Verdict {
            run: "churn".into(),
            ok: true,
            ops: u64::MAX,
            unit: "pages".into(),
            seconds: 1.0,
            rate: 0.0,
            detail: "a \"quoted\"\nline".into(),
        }
    }

    #[test]
    fn every_report_survives_the_wire() {
        let values = Map::from_iter([("x".to_owned(), Value::from(1))]);
        let run = || "churn".to_owned();
        let reports = [
            Report::Boot {
                agent: "1".into(),
                kernel: "6".into(),
            },
            Report::Ready {
                root: "/dev/vda".into(),
                channel: "hvc0".into(),
                cpus: 2,
                memory_kib: u64::MAX,
            },
            Report::Started { run: run() },
            Report::Progress {
                run: run(),
                seconds: 1.5,
                ops: 3,
                rate: 2.0,
            },
            Report::Stats {
                name: "written".into(),
                values: values.clone(),
            },
            Report::Verdict(verdict()),
            Report::Done { values },
            Report::Error { message: "no".into() },
        ];
        for report in reports {
            let event = Event {
                t: 12,
                id: Some(3),
                report,
            };
            let line = event.to_line();
            assert_eq!(line.matches('\n').count(), 1, "one line: {line}");
            assert_eq!(Event::parse(&line).unwrap(), event);
        }
    }

    #[test]
    fn a_verdict_is_flat_and_in_order() {
        let event = Event {
            t: 12,
            id: Some(3),
            report: Report::Verdict(Verdict {
                ops: 7,
                detail: String::new(),
                ..verdict()
            }),
        };
        let line = r#"{"t":12,"id":3,"event":"verdict","run":"churn","ok":true,"ops":7,"unit":"pages","seconds":1.0,"rate":0.0,"detail":""}"#;
        assert_eq!(event.to_line().trim_end(), line);
    }

    #[test]
    fn a_prefix_of_the_console_is_skipped() {
        let line = format!(
            "{}{}",
            crate::CONSOLE_PREFIX,
            r#"{"t":1,"event":"error","message":"x"}"#
        );
        assert_eq!(
            Event::parse(&line).unwrap().report,
            Report::Error { message: "x".into() }
        );
    }
}
