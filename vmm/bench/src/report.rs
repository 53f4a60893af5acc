//! The JSON document that a bench leaves behind.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// A report that could not be left behind.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the report to {file}", file = file.display())]
pub struct ReportError {
    file: PathBuf,
    source: io::Error,
}

/// A bench's results together with the facts about the machine that produced them.
///
/// Written as `{"bench": NAME, "machine": {...}, "results": {...}}`; keys of `results` may be dotted paths
/// (`plan_ms.100`), which nest.
#[derive(Debug, Clone)]
pub struct Report {
    bench: String,
    results: Map<String, Value>,
}

impl Report {
    /// An empty report of the bench called `bench`.
    pub fn new(bench: &str) -> Self {
        Self {
            bench: bench.to_owned(),
            results: Map::new(),
        }
    }

    /// Stores `value` under `results.<path>`, where dots in `path` nest.
    ///
    /// # Panics
    /// When `value` cannot be JSON, or when part of `path` already holds something other than an object:
    /// both are bugs of the bench.
    pub fn set(&mut self, path: &str, value: impl serde::Serialize) {
        let value = serde_json::to_value(value).expect("a bench result is plain data");
        let mut names = path.split('.').peekable();
        let mut object = &mut self.results;
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                object.insert(name.to_owned(), value);
                return;
            }
            let inner = object.entry(name).or_insert_with(|| json!({}));
            object = inner
                .as_object_mut()
                .expect("a result path runs through objects only");
        }
    }

    /// The whole document.
    pub fn to_json(&self) -> Value {
        json!({"bench": self.bench, "machine": machine(), "results": self.results})
    }

    /// Writes the document to `file`, where one was asked for.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, file: Option<&Path>) -> Result<(), ReportError> {
        let Some(file) = file else { return Ok(()) };
        // The alternate form of a JSON value is its indented text.
        let text = format!("{:#}\n", self.to_json());
        std::fs::write(file, text).map_err(|source| ReportError {
            file: file.to_owned(),
            source,
        })
    }
}

/// What a reader needs to judge the numbers by.
fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo").lines().find_map(|line| {
        line.strip_prefix("model name")
            .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned())
    });
    let memory_kib = read("/proc/meminfo").lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?
            .trim()
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()
    });
    json!({
        "cpu": model,
        "cpus": std::thread::available_parallelism().map(std::num::NonZero::get).unwrap_or(1),
        "memory_kib": memory_kib,
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dotted_paths_nest_and_share_their_parents() {
        let mut report = Report::new("demo");
        report.set("plan_ms.100", 0.5);
        report.set("plan_ms.10000", 3);
        report.set("ok", true);
        assert_eq!(
            report.to_json()["results"],
            json!({"plan_ms": {"100": 0.5, "10000": 3}, "ok": true})
        );
    }
}
