//! What the launcher knows of one guest.

use std::time::{Duration, Instant};

use levy_agent::{Action, Event as AgentEvent, Report, Workload};
use levy_protocol::outcome::Ending;
use levy_protocol::{GuestEvent, GuestState};

use super::session::Session;
use super::summary::{GuestSummary, shown};

/// A guest that was started.
pub(super) struct Guest {
    pub(super) session: Session,
    pub(super) summary: GuestSummary,
    /// The number of the command that started its workload, until that is over.
    run: Option<u64>,
    /// The workload's name.
    workload: &'static str,
    /// Its agent has said that it is ready, which counts once.
    ready: bool,
    /// When the workload's verdict is overdue.
    pub(super) verdict_due: Option<Instant>,
    pub(super) stop: Stop,
    pub(super) ended: bool,
    /// Restarts in a row before it was ready.
    vain_restarts: u32,
}

/// How far a guest is on its way to the end that the launcher wants for it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stop {
    /// It is stopped once its figures have come.
    pub(super) after_figures: bool,
    /// Then its process is killed.
    pub(super) kill_at: Option<Instant>,
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
            workload: "",
            ready: false,
            verdict_due: None,
            stop: Stop::default(),
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
                self.summary.complain(&complaint);
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
        self.ready = false;
        self.verdict_due = None;
        self.stop = Stop::default();
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
                summary.state = shown(&state.to_string());
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

    /// Its agent said `event`. What it says again brings about nothing again.
    pub(super) fn heard_agent(&mut self, event: &AgentEvent) -> Step {
        let is_of_run = event.id.is_some() && event.id == self.run;
        match &event.report {
            Report::Ready { .. } if !self.ready => {
                self.ready = true;
                return Step::Ready;
            }
            Report::Started { .. } if is_of_run => self.summary.state = format!("{} started", self.workload),
            Report::Progress { seconds, rate, .. } if is_of_run => {
                self.summary.state = format!("{} {seconds:.0} s, {rate:.0}/s", self.workload);
            }
            verdict @ Report::Verdict(_) if is_of_run => {
                self.summary.verdict = Some(verdict.clone());
                self.run = None;
                return Step::Verdict;
            }
            Report::Error { message } => {
                self.summary.complain(message);
                // An error that answers the command means that no verdict will come.
                if is_of_run {
                    self.run = None;
                    return Step::Verdict;
                }
            }
            _ => {}
        }
        Step::Nothing
    }

    /// Starts the workload, which may take `patience` more than it announces.
    pub(super) fn start(&mut self, workload: &Workload, patience: Duration) -> std::io::Result<()> {
        self.workload = workload.name();
        self.run = Some(self.session.command(Action::Run(workload.clone()))?);
        self.verdict_due = Some(Instant::now() + Duration::from_secs(workload.seconds()) + patience);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::SessionFiles;

    /// A guest whose process says nothing, and whose workload is command 1.
    fn guest() -> (Guest, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "exec sleep 600", "sh"]);
        let session = Session::start(command, SessionFiles::numbered(dir.path(), 0), |_| {}).unwrap();
        let mut guest = Guest::new("g", session);
        (guest.run, guest.workload) = (Some(1), "churn");
        (guest, dir)
    }

    fn said(line: &str) -> AgentEvent {
        AgentEvent::parse(line).unwrap()
    }

    #[test]
    fn what_an_agent_says_again_and_again_brings_about_one_step() {
        let (mut guest, _dir) = guest();
        let ready = said(r#"{"t":0,"event":"ready","root":"x","channel":"h","cpus":1,"memory_kib":1}"#);
        let verdict = said(
            r#"{"t":0,"id":1,"event":"verdict","run":"r","ok":true,"ops":1,"unit":"u","seconds":1.0,"rate":1.0,"detail":""}"#,
        );
        let error = said(r#"{"t":0,"id":1,"event":"error","message":"m"}"#);
        assert_eq!(guest.heard_agent(&ready), Step::Ready);
        assert_eq!(guest.heard_agent(&verdict), Step::Verdict);
        for again in [ready, verdict, error] {
            assert_eq!(guest.heard_agent(&again), Step::Nothing);
        }
    }

    #[test]
    fn errors_without_end_are_kept_in_part() {
        let (mut guest, _dir) = guest();
        let error = format!(r#"{{"t":0,"event":"error","message":"{}"}}"#, "x".repeat(60_000));
        let error = said(&error);
        for _ in 0..10_000 {
            guest.heard_agent(&error);
        }
        let kept: usize = guest.summary.complaints.iter().map(String::len).sum();
        assert!(kept < 100_000, "{kept} bytes");
        assert_eq!(
            guest.summary.dropped_lines + guest.summary.complaints.len() as u64,
            10_000
        );
    }

    #[test]
    fn a_guest_does_not_choose_the_words_of_its_state() {
        let (mut guest, _dir) = guest();
        guest.heard_agent(&said(r#"{"t":0,"id":1,"event":"started","run":"\u001b[2J"}"#));
        assert_eq!(guest.summary.state, "churn started");
    }
}
