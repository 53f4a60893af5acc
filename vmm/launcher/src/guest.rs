//! What the launcher knows of one guest.

use std::time::{Duration, Instant};

use levy_agent::{Action, Event as AgentEvent, Report, Workload};
use levy_protocol::outcome::Ending;
use levy_protocol::{GuestEvent, GuestState};

use super::session::Session;
use super::summary::GuestSummary;

/// A guest that was started.
pub(super) struct Guest {
    pub(super) session: Session,
    pub(super) summary: GuestSummary,
    /// The number of the command that started its workload.
    run: Option<u64>,
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
    pub(super) fn new(name: &str, session: Session) -> Self {
        Self {
            session,
            summary: GuestSummary::new(name),
            run: None,
            verdict_due: None,
            ended: false,
            vain_restarts: 0,
        }
    }

    /// Whether it has ended by asking for a restart, and not for the same again and again.
    pub(super) fn may_restart(&self) -> bool {
        self.summary.outcome == Some(Ending::Rebooted) && self.vain_restarts < VAIN_RESTARTS
    }

    /// Connects to its agent, if it runs and that is not done. What this process is short of now it may have later.
    pub(super) fn connect(&mut self) {
        if let Err(error) = self.session.connect() {
            let complaint = format!("no way to the agent: {}", levy_protocol::error_chain(&error));
            if !self.summary.complaints.contains(&complaint) {
                self.summary.complaints.push(complaint);
            }
        }
    }

    /// `session` has taken the place of its own, which has ended.
    pub(super) fn restarted(&mut self, session: Session) {
        self.vain_restarts = match self.summary.ready_ms {
            Some(_) => 0,
            None => self.vain_restarts + 1,
        };
        self.session = session;
        self.run = None;
        self.verdict_due = None;
        let summary = &mut self.summary;
        summary.restarts += 1;
        summary.state = "restarting".into();
        (summary.outcome, summary.message) = (None, String::new());
        (summary.started_ms, summary.booted_ms, summary.ready_ms) = (None, None, None);
    }

    /// Its process reported `event`.
    pub(super) fn heard_vmm(&mut self, event: &GuestEvent) {
        self.session.heard(event);
        let summary = &mut self.summary;
        match event {
            GuestEvent::State { state, ms, .. } => {
                match state {
                    GuestState::Running => summary.started_ms = Some(*ms),
                    GuestState::Booted => summary.booted_ms = Some(*ms),
                    GuestState::Ready => summary.ready_ms = Some(*ms),
                    _ => {}
                }
                summary.state = state.to_string();
            }
            GuestEvent::Ended { outcome, message, .. } => {
                summary.state = "ended".into();
                summary.outcome = Some(outcome.clone());
                message.clone_into(&mut summary.message);
            }
            GuestEvent::Failed { message, .. } => {
                summary.state = "failed".into();
                message.clone_into(&mut summary.message);
            }
            GuestEvent::Unknown(_) => {}
        }
    }

    /// Its agent said `event`.
    pub(super) fn heard_agent(&mut self, event: &AgentEvent) -> Step {
        let is_of_run = event.id.is_some() && event.id == self.run;
        match &event.report {
            Report::Ready { .. } => return Step::Ready,
            Report::Started { run } if is_of_run => self.summary.state = format!("{run} started"),
            Report::Progress {
                run, seconds, rate, ..
            } if is_of_run => {
                self.summary.state = format!("{run} {seconds:.0} s, {rate:.0}/s");
            }
            verdict @ Report::Verdict(_) if is_of_run => {
                self.summary.verdict = Some(verdict.clone());
                return Step::Verdict;
            }
            Report::Error { message } => {
                self.summary.complaints.push(message.clone());
                // An error that answers the command means that no verdict will come.
                if is_of_run {
                    return Step::Verdict;
                }
            }
            _ => {}
        }
        Step::Nothing
    }

    /// Starts the workload, which may take `patience` more than it announces.
    pub(super) fn start(&mut self, workload: &Workload, patience: Duration) -> std::io::Result<()> {
        self.run = Some(self.session.command(Action::Run(workload.clone()))?);
        self.verdict_due = Some(Instant::now() + Duration::from_secs(workload.seconds()) + patience);
        Ok(())
    }
}
