//! One guest on a testbed: its process, its agent, and what it was asked to do.

use std::collections::BTreeMap;
use std::io;

use levy_agent::{Action, Report as Word, Verdict, Workload};
use serde::Serialize;
use serde_json::{Map, Value};

use levy_launcher::Session;

/// A run that says by its progress that it is set up is after this many lines.
const SET_UP_TICKS: usize = 5;

/// Something that a guest was asked to run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Its workload's name.
    pub name: String,
    /// The remark with which it says that it has set itself up; none where it says so by its progress.
    pub set_up_word: Option<&'static str>,
    /// Seconds of the testbed when it was asked for.
    pub asked: f64,
    /// What it said about its progress, once a second.
    pub ticks: Vec<Tick>,
    /// What else it said, as `written` or `ready`: the testbed's seconds, name and figures.
    pub remarks: Vec<(f64, String, Map<String, Value>)>,
    /// Its verdict, once it has ended.
    pub verdict: Option<Verdict>,
}

/// One progress line of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tick {
    /// Seconds of the testbed when it was heard.
    pub seconds: f64,
    /// Operations so far.
    pub ops: u64,
    /// Operations per second since the line before, by the guest's clock.
    pub rate: f64,
}

impl Run {
    fn of(workload: &Workload, asked: f64) -> Self {
        Self {
            name: workload.name().to_owned(),
            set_up_word: workload.set_up_word(),
            asked,
            ..Self::default()
        }
    }

    /// Whether it has set itself up, by its own word, or has ended.
    pub fn is_set_up(&self) -> bool {
        let said = match self.set_up_word {
            Some(word) => self.remarks.iter().any(|(_, name, _)| name == word),
            None => self.ticks.len() >= SET_UP_TICKS,
        };
        said || self.verdict.is_some()
    }

    fn hear(&mut self, word: &Word, now: f64) {
        match word {
            Word::Progress { ops, rate, .. } => self.ticks.push(Tick {
                seconds: now,
                ops: *ops,
                rate: *rate,
            }),
            Word::Stats { name, values } => self.remarks.push((now, name.clone(), values.clone())),
            Word::Verdict(verdict) => self.verdict = Some(verdict.clone()),
            // An error that answers the command means that no verdict will come.
            Word::Error { message } => {
                self.verdict = Some(Verdict {
                    detail: message.clone(),
                    ..Verdict::default()
                });
            }
            _ => {}
        }
    }

    /// Operations per second between two moments of the testbed, from the progress lines in between; none with fewer than
    /// two.
    pub fn rate_between(&self, from: f64, to: f64) -> Option<f64> {
        let mut within = self
            .ticks
            .iter()
            .filter(|tick| (from..=to).contains(&tick.seconds));
        let (first, last) = (within.next()?, within.next_back()?);
        Some((last.ops - first.ops.min(last.ops)) as f64 / (last.seconds - first.seconds).max(f64::EPSILON))
    }
}

/// What one command was answered with.
pub(super) type Answer = Result<Map<String, Value>, String>;

/// A guest's process and everything heard of it.
pub(super) struct TestGuest {
    pub(super) name: String,
    pub(super) session: Session,
    /// Its agent obeys commands.
    pub(super) ready: bool,
    pub(super) runs: BTreeMap<u64, Run>,
    pub(super) answers: BTreeMap<u64, Answer>,
}

impl TestGuest {
    pub(super) fn new(name: &str, session: Session) -> Self {
        Self {
            name: name.to_owned(),
            session,
            ready: false,
            runs: BTreeMap::new(),
            answers: BTreeMap::new(),
        }
    }

    /// Sends a command to the agent; returns its number.
    pub(super) fn command(&mut self, action: Action, now: f64) -> io::Result<u64> {
        let run = match &action {
            Action::Run(workload) => Some(Run::of(workload, now)),
            _ => None,
        };
        let id = self.session.command(action)?;
        if let Some(run) = run {
            self.runs.insert(id, run);
        }
        Ok(id)
    }

    /// The agent said `word`, about command `id`, at second `now` of the testbed.
    pub(super) fn hear(&mut self, id: Option<u64>, word: &Word, now: f64) {
        if matches!(word, Word::Ready { .. }) {
            self.ready = true;
        }
        let Some(id) = id else { return };
        match word {
            Word::Done { values } => {
                self.answers.insert(id, Ok(values.clone()));
            }
            Word::Error { message } => {
                self.answers.insert(id, Err(message.clone()));
            }
            _ => {}
        }
        if let Some(run) = self.runs.get_mut(&id) {
            run.hear(word, now);
        }
    }

    /// The run that was begun last.
    pub(super) fn last_run(&self) -> Option<&Run> {
        self.runs.last_key_value().map(|(_, run)| run)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(run: &mut Run, word: Value) {
        run.hear(&serde_json::from_value(word).unwrap(), 0.0);
    }

    #[test]
    fn a_run_is_set_up_when_it_says_so_however_long_that_takes() {
        let progress = || json!({"event": "progress", "run": "any", "seconds": 1.0, "ops": 1, "rate": 1.0});
        for (words, says) in [
            ("fill", Some("filled")),
            ("file", Some("written")),
            ("reader", Some("ready")),
            ("redis", Some("loaded")),
            ("pgbench", Some("loaded")),
            ("churn", None),
        ] {
            let mut run = Run::of(&Workload::from_words(words, []).unwrap(), 0.0);
            told(
                &mut run,
                json!({"event": "stats", "name": "another", "values": {}}),
            );
            (0..100).for_each(|_| told(&mut run, progress()));
            assert_eq!(run.is_set_up(), says.is_none(), "{words}");
            let word = says.unwrap_or("any");
            told(&mut run, json!({"event": "stats", "name": word, "values": {}}));
            assert!(run.is_set_up(), "{words}");
        }
    }

    #[test]
    fn a_rate_is_taken_between_the_outermost_lines_inside() {
        let ticks = [(1.0, 10), (2.0, 30), (3.0, 60), (9.0, 60)].map(|(seconds, ops)| Tick {
            seconds,
            ops,
            rate: 0.0,
        });
        let run = Run {
            ticks: ticks.to_vec(),
            ..Run::default()
        };
        assert_eq!(run.rate_between(1.0, 3.5), Some(25.0));
        assert_eq!(run.rate_between(0.0, 10.0), Some(6.25));
        assert_eq!(run.rate_between(1.5, 2.5), None);
    }
}
