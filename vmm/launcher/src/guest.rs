//! What the launcher knows of one guest.

use std::time::{Duration, Instant};

use levy_agent::{Action, Command, Report, Workload};
use serde_json::Value;

use super::agent::Agent;
use super::summary::GuestSummary;
use super::vmm_process::VmmProcess;

/// The id of the command that starts the workload.
const RUN: u64 = 1;

/// A guest that was started.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) vmm: VmmProcess,
    pub(super) agent: Option<Agent>,
    pub(super) summary: GuestSummary,
    /// When the workload's verdict is overdue.
    pub(super) verdict_due: Option<Instant>,
    pub(super) ended: bool,
    /// Restarts in a row before it was ready.
    vain_restarts: u32,
}

/// Restarts in a row without ever being ready, after which a guest counts as ended.
const VAIN_RESTARTS: u32 = 5;

/// What the launcher does about something a guest said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    /// The agent takes commands.
    Ready,
    /// The workload is done.
    Verdict,
}

impl Guest {
    pub(super) fn new(name: &str, vmm: VmmProcess) -> Self {
        Self {
            vmm,
            agent: None,
            summary: GuestSummary::new(name),
            verdict_due: None,
            ended: false,
            vain_restarts: 0,
        }
    }

    /// Whether it has ended by asking for a restart, and not for the same again and again.
    pub(super) fn may_restart(&self) -> bool {
        self.summary.outcome.as_deref() == Some("rebooted") && self.vain_restarts < VAIN_RESTARTS
    }

    /// Whether its agent can be connected to and is not.
    pub(super) fn lacks_agent(&self) -> bool {
        let runs = self.summary.started_ms.is_some() && self.summary.outcome.is_none();
        runs && !self.ended && self.agent.is_none()
    }

    /// `vmm` has taken the place of its process.
    pub(super) fn restarted(&mut self, vmm: VmmProcess) {
        self.vain_restarts = match self.summary.ready_ms {
            Some(_) => 0,
            None => self.vain_restarts + 1,
        };
        self.vmm = vmm;
        self.agent = None;
        self.verdict_due = None;
        let summary = &mut self.summary;
        summary.restarts += 1;
        summary.state = "restarting".into();
        (summary.outcome, summary.message) = (None, String::new());
        (summary.started_ms, summary.booted_ms, summary.ready_ms) = (None, None, None);
    }

    /// The VMM process reported `value`.
    pub(super) fn heard_vmm(&mut self, value: &Value) {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        match value["event"].as_str() {
            Some("state") => {
                let state = text("state");
                let ms = value["ms"].as_u64();
                match state.as_str() {
                    "running" => self.summary.started_ms = ms,
                    "booted" => self.summary.booted_ms = ms,
                    "ready" => self.summary.ready_ms = ms,
                    _ => {}
                }
                self.summary.state = state;
            }
            Some("ended") => {
                self.summary.state = "ended".into();
                self.summary.outcome = Some(text("outcome"));
                self.summary.message = text("message");
            }
            Some("failed") => {
                self.summary.state = "failed".into();
                self.summary.message = text("message");
            }
            _ => {}
        }
    }

    /// The agent reported `report`, as an answer to command `id`.
    pub(super) fn heard_agent(&mut self, id: Option<u64>, report: &Report) -> Step {
        match report {
            Report::Ready { .. } => return Step::Ready,
            Report::Started { run } if id == Some(RUN) => self.summary.state = format!("{run} started"),
            Report::Progress {
                run, seconds, rate, ..
            } if id == Some(RUN) => {
                self.summary.state = format!("{run} {seconds:.0} s, {rate:.0}/s");
            }
            Report::Verdict { .. } if id == Some(RUN) => {
                self.summary.verdict = serde_json::to_value(report).ok();
                return Step::Verdict;
            }
            Report::Error { message } => {
                self.summary.complaints.push(message.clone());
                // An error that answers the command means that no verdict will come.
                if id == Some(RUN) {
                    return Step::Verdict;
                }
            }
            _ => {}
        }
        Step::Nothing
    }

    /// Starts the workload, which may take `patience` more than it announces.
    pub(super) fn start(&mut self, workload: &Workload, patience: Duration) -> std::io::Result<()> {
        let command = Command {
            id: RUN,
            action: Action::Run(workload.clone()),
        };
        if let Some(agent) = &mut self.agent {
            agent.send(&command)?;
        }
        self.verdict_due = Some(Instant::now() + Duration::from_secs(workload.seconds()) + patience);
        Ok(())
    }
}
