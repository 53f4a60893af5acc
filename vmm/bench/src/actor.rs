//! One guest on a stage: its process, its agent, and what it was asked to do.

use std::collections::BTreeMap;
use std::io;

use levy_agent::{Action, Command, Report as Word};
use serde::Serialize;
use serde_json::{Map, Value};

use levy_launcher::{Agent, VmmProcess};

/// Something that a guest was asked to run.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Its workload's name.
    pub name: String,
    /// Seconds of the stage when it was asked for.
    pub asked: f64,
    /// What it said about its progress, once a second.
    pub ticks: Vec<Tick>,
    /// What else it said, as `written` or `ready`: the stage's seconds, name and figures.
    pub remarks: Vec<(f64, String, Map<String, Value>)>,
    /// Its verdict, once it has ended.
    pub verdict: Option<Verdict>,
}

/// One progress line of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tick {
    /// Seconds of the stage when it was heard.
    pub seconds: f64,
    /// Operations so far.
    pub ops: u64,
    /// Operations per second since the line before, by the guest's clock.
    pub rate: f64,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Everything was as it had to be, every byte that was checked included.
    pub ok: bool,
    /// Operations done.
    pub ops: u64,
    /// What an operation is.
    pub unit: String,
    /// Seconds of measured work.
    pub seconds: f64,
    /// Operations per second of measured work.
    pub rate: f64,
    /// Empty, or what was wrong, or further results.
    pub detail: String,
}

impl Run {
    /// Operations per second between two moments of the stage, from the progress lines in between; none with fewer than
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
pub(super) struct Actor {
    pub(super) name: String,
    pub(super) vmm: VmmProcess,
    pub(super) agent: Option<Agent>,
    /// Its agent obeys commands.
    pub(super) ready: bool,
    /// How it ended, in a sentence.
    pub(super) ended: Option<String>,
    /// It was sent away: its end is expected.
    pub(super) dismissed: bool,
    pub(super) runs: BTreeMap<u64, Run>,
    pub(super) answers: BTreeMap<u64, Answer>,
    last_id: u64,
}

impl Actor {
    pub(super) fn new(name: &str, vmm: VmmProcess) -> Self {
        Self {
            name: name.to_owned(),
            vmm,
            agent: None,
            ready: false,
            ended: None,
            dismissed: false,
            runs: BTreeMap::new(),
            answers: BTreeMap::new(),
            last_id: 0,
        }
    }

    /// Sends a command to the agent; returns its number.
    pub(super) fn command(&mut self, action: Action, now: f64) -> io::Result<u64> {
        self.last_id += 1;
        let id = self.last_id;
        if let Action::Run(workload) = &action {
            let name = workload.name().to_owned();
            let run = Run {
                name,
                asked: now,
                ..Run::default()
            };
            self.runs.insert(id, run);
        }
        let agent = self.agent.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        agent.send(&Command { id, action })?;
        Ok(id)
    }

    /// The agent said `word`, about command `id`, at second `now` of the stage.
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
        let Some(run) = self.runs.get_mut(&id) else { return };
        match word {
            Word::Progress { ops, rate, .. } => run.ticks.push(Tick {
                seconds: now,
                ops: *ops,
                rate: *rate,
            }),
            Word::Stats { name, values } => run.remarks.push((now, name.clone(), values.clone())),
            Word::Verdict {
                ok,
                ops,
                unit,
                seconds,
                rate,
                detail,
                ..
            } => {
                run.verdict = Some(Verdict {
                    ok: *ok,
                    ops: *ops,
                    unit: unit.clone(),
                    seconds: *seconds,
                    rate: *rate,
                    detail: detail.clone(),
                });
            }
            // An error that answers the command means that no verdict will come.
            Word::Error { message } => {
                run.verdict = Some(Verdict {
                    ok: false,
                    ops: 0,
                    unit: String::new(),
                    seconds: 0.0,
                    rate: 0.0,
                    detail: message.clone(),
                });
            }
            _ => {}
        }
    }

    /// The run that was begun last.
    pub(super) fn last_run(&self) -> Option<&Run> {
        self.runs.last_key_value().map(|(_, run)| run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
