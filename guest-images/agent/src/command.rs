//! What the host asks of the agent.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Workload;

/// A line from the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The host's name for it; events that answer carry it. The host should not use one twice.
    pub id: u64,
    /// What to do.
    pub action: Action,
}

/// What a command asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Run a workload; written as `"run":"NAME"` with its parameters beside it.
    #[serde(skip)]
    Run(Workload),
    /// End the run that was started by command `target` early; it still gives its verdict.
    Stop {
        /// The id of the command that started it.
        target: u64,
    },
    /// Write everything back and switch off.
    Poweroff,
    /// Write everything back and restart.
    Reboot,
    /// Stop the CPUs without switching off: to a host this looks like a hang.
    Halt,
    /// Crash the kernel.
    Panic,
    /// Answer with /proc/meminfo, kB by name.
    Meminfo,
    /// Run a program to its end and answer with its status and output (10 KiB of each stream).
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
        /// Seconds until it is killed.
        #[serde(default = "a_minute")]
        seconds: u64,
    },
    /// Insert or remove one of the modules that came in the initramfs.
    Module {
        /// Its name, as in `virtio_balloon`.
        name: String,
        /// What to do with it.
        change: ModuleChange,
    },
}

/// What to do with a kernel module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModuleChange {
    /// Load it.
    Insert,
    /// Unload it.
    Remove,
}

fn a_minute() -> u64 {
    60
}

impl Command {
    /// Reads a line.
    ///
    /// # Errors
    /// It is not a command: the message says what is wrong with which part, and goes back to the host.
    pub fn parse(line: &str) -> Result<Self, String> {
        let mut fields: Map<String, Value> =
            serde_json::from_str(line.trim()).map_err(|error| format!("not a JSON object: {error}"))?;
        let id = fields.remove("id").ok_or("a command needs a number \"id\"")?;
        let id = id
            .as_u64()
            .ok_or_else(|| format!("\"id\" must be a number from 0 on, not {id}"))?;
        let action = match (fields.contains_key("run"), fields.contains_key("do")) {
            (true, false) => Action::Run(Workload::from_fields(fields)?),
            (false, true) => serde_json::from_value(Value::Object(fields))
                .map_err(|error| format!("not a command: {error}"))?,
            _ => return Err("a command needs either \"run\" or \"do\"".to_owned()),
        };
        Ok(Self { id, action })
    }

    /// The line, newline included.
    ///
    /// # Panics
    /// Never: all fields have JSON forms.
    pub fn to_line(&self) -> String {
        let value = match &self.action {
            Action::Run(workload) => serde_json::to_value(workload),
            other => serde_json::to_value(other),
        };
        let mut value = value.expect("plain data has a JSON form");
        value["id"] = self.id.into();
        format!("{value}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_survives_the_wire() {
        let actions = [
            Action::Run(Workload::from_words("churn", ["mib=3", "rate=7"]).unwrap()),
            Action::Stop { target: 3 },
            Action::Poweroff,
            Action::Reboot,
            Action::Halt,
            Action::Panic,
            Action::Meminfo,
            Action::Exec {
                argv: vec!["ls".into(), "-l".into()],
                seconds: 5,
            },
            Action::Module {
                name: "virtio_balloon".into(),
                change: ModuleChange::Remove,
            },
        ];
        for action in actions {
            let command = Command { id: 9, action };
            assert_eq!(Command::parse(&command.to_line()), Ok(command));
        }
    }

    #[test]
    fn the_form_on_the_wire_is_flat() {
        let command = Command {
            id: 1,
            action: Action::Stop { target: 4 },
        };
        assert_eq!(command.to_line(), "{\"do\":\"stop\",\"id\":1,\"target\":4}\n");
        let run = Command::parse(r#"{"id":1,"run":"redis","seconds":10}"#).unwrap();
        assert!(matches!(run.action, Action::Run(Workload::Redis(redis)) if redis.seconds == 10));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, names) in [
            ("", "JSON"),
            ("[]", "JSON"),
            ("{}", "id"),
            (r#"{"id":-1,"do":"poweroff"}"#, "-1"),
            (r#"{"id":1}"#, "run"),
            (r#"{"id":1,"run":"idle","do":"panic"}"#, "either"),
            (r#"{"id":1,"run":"nothing"}"#, "nothing"),
            (r#"{"id":1,"run":"idle","second":3}"#, "second"),
            (r#"{"id":1,"run":"churn","mib":0}"#, "mib"),
            (r#"{"id":1,"do":"dance"}"#, "dance"),
            (r#"{"id":1,"do":"stop"}"#, "target"),
        ] {
            let error = Command::parse(line).unwrap_err();
            assert!(error.contains(names), "{line}: {error}");
        }
    }
}
