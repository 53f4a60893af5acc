//! All guests of one launch, from the first process to the last.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use allocator::Pages;
use levy_agent::{Event as AgentEvent, Workload};
use rustix::process::Signal;
use serde_json::Value;

use super::guest::{Guest, Step};
use super::launch_event::LaunchEvent;
use super::screen::Screen;
use super::session::{ANSWER_PATIENCE, Note, Session, SessionFiles};
use super::summary::Summary;
use levy_machine::process::Signals;
use levy_manager::api;
use levy_manager::cgroup::{CgroupError, Choice, MemoryHigh};
use levy_manager::host::{Host, HostError};
use levy_manager::policy::Settings;
use levy_protocol::GuestEvent;
use levy_protocol::control::{ClientError, Request};
use levy_protocol::run_dir::{RunDir, Sockets};

/// How long a guest may take to switch itself off.
const STOP_GRACE: Duration = Duration::from_secs(15);
/// The same after Ctrl-C.
const INTERRUPT_GRACE: Duration = Duration::from_secs(3);
/// How long a VMM process may take to end once its guest has.
const PROCESS_GRACE: Duration = Duration::from_secs(10);
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(200);
/// What is heard and not looked at yet, at most. The threads that hear wait then, and what they hear from drops lines.
const UNHEARD: usize = 256;
/// Lines of console shown of a guest that did not end well.
const CONSOLE_LINES: usize = 15;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The guests.
    pub guests: Vec<PlannedGuest>,
    /// How long a verdict may take beyond the time that the workload announces.
    pub patience: Duration,
    /// Leave guests running after their verdict.
    pub keep: bool,
    /// Who manages the guests' memory.
    pub manager: Manager,
}

/// One guest of a plan.
#[derive(Clone, Debug)]
pub struct PlannedGuest {
    /// Its name.
    pub name: String,
    /// Arguments of its `levy vmm`.
    pub args: Vec<OsString>,
    /// What it runs; without, it runs until it is switched off.
    pub workload: Option<Workload>,
    /// What happens when it restarts.
    pub on_reboot: OnReboot,
    /// Private layers of its disks that a restart is to find, from [`keep_layers`](super::keep_layers).
    pub layers: Vec<Arc<File>>,
}

/// What happens when a guest asks for a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnReboot {
    /// Its process ends and another one takes its place, with the same name and the same disks. All of the guest's
    /// memory goes with the old process.
    #[default]
    Restart,
    /// It has ended.
    Exit,
}

/// Who manages the guests' memory.
#[derive(Clone, Debug)]
pub enum Manager {
    /// No manager.
    None,
    /// The manager whose run directory this is.
    Running(PathBuf),
    /// This launcher, for as long as its guests run; with what may be promised as
    /// swap, and with the control group that slows guests down between two samples.
    Own(Box<Settings>, Pages, Choice),
}

/// Why guests could not be launched.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum FleetError {
    /// There is no place for sockets.
    #[error(
        "cannot make a folder for the guests' sockets; set XDG_RUNTIME_DIR or TMPDIR to a writable place"
    )]
    RunDir(#[source] io::Error),
    /// A process cannot be started.
    #[error("cannot start a process for guest {name}")]
    Start {
        name: String,
        #[source]
        source: io::Error,
    },
    /// The guests cannot be managed.
    #[error(transparent)]
    Manager(#[from] HostError),
    /// The control group that was named cannot be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The manager cannot be asked anything.
    #[error(transparent)]
    Api(#[from] api::ServeError),
    /// No threads.
    #[error("the host cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Something that a launcher hears.
enum Heard {
    /// Of the guest with this number.
    Guest(usize, Note),
    /// What came of a request to a guest's process.
    Answer(Asked, Result<Value, ClientError>),
    /// Ctrl-C or a relative of it.
    Signal,
}

/// A request to a guest's process, which answers later or never.
struct Asked {
    guest: usize,
    /// Restarts of the guest before it: an answer of the process before means nothing.
    restarts: u32,
    figures: bool,
}

/// Guests that run.
pub struct Fleet {
    guests: Vec<Guest>,
    plan: Plan,
    screen: Screen,
    ears: SyncSender<Heard>,
    heard: Receiver<Heard>,
    interrupted: bool,
    /// This launcher's own manager, and its API.
    host: Option<(Host, api::Server)>,
    // Last: removed when no process uses it any more.
    dir: RunDir,
}

impl Fleet {
    /// Starts all guests of `plan`.
    ///
    /// # Errors
    /// When the host refuses a folder, a process or a thread. Guests that were started are taken down again.
    pub fn launch(plan: Plan, screen: Screen, signals: Signals) -> Result<Self, FleetError> {
        // A process takes a handful of files for each guest.
        levy_protocol::raise_open_files();
        let (ears, heard) = sync_channel(UNHEARD);
        let dir = RunDir::new().map_err(FleetError::RunDir)?;
        let host = match &plan.manager {
            Manager::Own(settings, backing, group) => {
                let (host, api) = manage(dir.path(), settings, *backing)?;
                host.use_cgroup(MemoryHigh::find(group).inspect_err(|_| host.close())?);
                Some((host, api))
            }
            Manager::None | Manager::Running(_) => None,
        };
        let mut fleet = Self {
            host,
            guests: Vec::new(),
            plan,
            screen,
            ears,
            heard,
            interrupted: false,
            dir,
        };
        let interrupts = fleet.ears.clone();
        signals
            .watch(move |_| {
                let _ = interrupts.send(Heard::Signal);
            })
            .map_err(FleetError::Thread)?;
        for number in 0..fleet.plan.guests.len() {
            let name = fleet.plan.guests[number].name.clone();
            let session = fleet.start(number).map_err(|source| FleetError::Start {
                name: name.clone(),
                source,
            })?;
            fleet.screen.add(&name);
            fleet.guests.push(Guest::new(&name, session));
            fleet.show(number);
        }
        Ok(fleet)
    }

    /// Starts the process of guest `number`, for the first time or in the place of one that has ended.
    fn start(&self, number: usize) -> io::Result<Session> {
        let PlannedGuest { name, args, .. } = &self.plan.guests[number];
        let mut args = args.clone();
        if let Some(manager) = self.manager() {
            args.extend(["--manager".into(), manager.into()]);
        }
        let ears = self.ears.clone();
        let listener = move |note| {
            let _ = ears.send(Heard::Guest(number, note));
        };
        let files = SessionFiles::numbered(self.dir.path(), number);
        Session::launch(name, &args, files, listener)
    }

    /// Run directory of the guests' manager.
    fn manager(&self) -> Option<&Path> {
        match &self.plan.manager {
            Manager::None => None,
            Manager::Running(dir) => Some(dir),
            Manager::Own(..) => Some(self.dir.path()),
        }
    }

    /// Watches the guests until all have ended.
    pub fn run(mut self) -> Summary {
        while self.guests.iter().any(|guest| !guest.ended) {
            match self.heard.recv_timeout(TICK) {
                Ok(Heard::Guest(number, note)) => self.handle(number, note),
                Ok(Heard::Answer(asked, answer)) => self.answered(&asked, answer),
                Ok(Heard::Signal) => self.interrupt(),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            self.guests.iter_mut().for_each(Guest::connect);
            self.give_up_on_late_verdicts();
            self.kill_those_that_stay();
        }
        self.release_brake();
        let guests = self.guests.iter().map(|guest| guest.summary.clone()).collect();
        let busy: Vec<_> = self.plan.guests.iter().map(|g| g.workload.is_some()).collect();
        let mut summary = Summary::of(guests, &busy, self.interrupted);
        if let Err(error) = self.screen.finish(&summary) {
            self.screen
                .say(&format!("cannot write to standard output: {error}"));
            summary.status = summary.status.max(1);
        }
        summary
    }

    /// Removes the control group that slows guests down. Only once the last guest has ended: it holds all of them.
    fn release_brake(&self) {
        if let Some((host, _)) = &self.host {
            host.use_cgroup(None);
        }
    }

    fn handle(&mut self, number: usize, note: Note) {
        match note {
            Note::Vmm(event) => self.vmm_said(number, event),
            Note::Agent(event) => self.agent_said(number, *event),
            Note::Missed(lines) => self.guests[number].summary.dropped_lines += lines,
            Note::Closed => self.ended(number),
        }
    }

    fn vmm_said(&mut self, number: usize, event: GuestEvent) {
        let guest = &mut self.guests[number];
        guest.heard_vmm(&event);
        self.screen.event(&LaunchEvent::Guest(event));
        guest.connect();
        self.show(number);
    }

    fn agent_said(&mut self, number: usize, event: AgentEvent) {
        let guest = &mut self.guests[number];
        if !guest.session.is_connected() {
            // The last words of the time before a restart.
            return;
        }
        let step = guest.heard_agent(&event);
        self.screen.event(&LaunchEvent::Agent {
            guest: guest.summary.name.clone(),
            line: event,
        });
        self.show(number);
        match step {
            Step::Nothing => {}
            Step::Ready => self.ready(number),
            Step::Verdict => self.verdict(number),
        }
    }

    fn ready(&mut self, number: usize) {
        self.ask(number, Request::Stats);
        let guest = &mut self.guests[number];
        // After a restart the workload begins anew, unless it was done.
        if guest.summary.verdict.is_none()
            && let Some(workload) = &self.plan.guests[number].workload
            && let Err(e) = guest.start(workload, self.plan.patience)
        {
            guest.summary.complain(&format!("cannot send the workload: {e}"));
        }
    }

    fn verdict(&mut self, number: usize) {
        let guest = &mut self.guests[number];
        guest.verdict_due = None;
        guest.stop.after_figures = !self.plan.keep;
        self.ask(number, Request::Stats);
    }

    /// Asks a guest's process and goes on: one that its guest has taken over may never answer.
    fn ask(&mut self, number: usize, request: Request) {
        let guest = &self.guests[number];
        let asked = Asked {
            guest: number,
            restarts: guest.summary.restarts,
            figures: request == Request::Stats,
        };
        let ears = self.ears.clone();
        let answered = move |answer| drop(ears.send(Heard::Answer(asked, answer)));
        // This process is short of something, which is not the guest's fault.
        if guest.session.ask_aside(request, answered).is_err() {
            let _ = guest.session.signal(Signal::TERM);
        }
    }

    fn answered(&mut self, asked: &Asked, answer: Result<Value, ClientError>) {
        let guest = &mut self.guests[asked.guest];
        if guest.ended || guest.summary.restarts != asked.restarts {
            return;
        }
        match (asked.figures, answer) {
            (true, answer) => {
                guest.summary.stats = answer.ok().or(guest.summary.stats.take());
                if std::mem::take(&mut guest.stop.after_figures) {
                    self.stop(asked.guest, STOP_GRACE);
                }
            }
            (false, Ok(_)) => {}
            // A guest that is gone needs no signal.
            (false, Err(error)) if error.vmm_may_be_well() => {
                let _ = guest.session.signal(Signal::TERM);
            }
            (false, Err(_)) => guest.session.kill(),
        }
    }

    fn stop(&mut self, number: usize, grace: Duration) {
        let guest = &mut self.guests[number];
        let grace_ms = grace.as_millis() as u64;
        // A VMM that has told its guest's end needs not be asked.
        if guest.summary.outcome.is_some() {
            return;
        }
        guest.stop.kill_at = Some(Instant::now() + grace + ANSWER_PATIENCE);
        self.ask(number, Request::Stop { grace_ms });
    }

    /// A process that was to take its guest down, and is still there long after that, does not do as it is asked.
    fn kill_those_that_stay(&mut self) {
        let now = Instant::now();
        for guest in self.guests.iter_mut().filter(|guest| !guest.ended) {
            if guest.stop.kill_at.take_if(|at| *at <= now).is_some() {
                guest.session.kill();
            }
        }
    }

    fn give_up_on_late_verdicts(&mut self) {
        let now = Instant::now();
        for number in 0..self.guests.len() {
            let guest = &mut self.guests[number];
            if guest.ended || guest.verdict_due.take_if(|due| *due <= now).is_none() {
                continue;
            }
            guest.stop.kill_at = Some(now + ANSWER_PATIENCE);
            let because = "the workload gave no verdict in time".to_owned();
            self.ask(number, Request::GiveUp { because });
        }
    }

    /// The first Ctrl-C lets guests write their disks back, the second one does not.
    fn interrupt(&mut self) {
        let running: Vec<_> = (0..self.guests.len())
            .filter(|&n| !self.guests[n].ended)
            .collect();
        if self.interrupted {
            running
                .into_iter()
                .for_each(|number| self.guests[number].session.kill());
            return;
        }
        self.interrupted = true;
        self.screen
            .say("stopping all guests; press Ctrl-C again to end them at once");
        for number in running {
            self.stop(number, INTERRUPT_GRACE);
        }
    }

    fn ended(&mut self, number: usize) {
        let restarts = self.plan.guests[number].on_reboot == OnReboot::Restart && !self.interrupted;
        if restarts && self.guests[number].may_restart() {
            return self.restart(number);
        }
        let guest = &mut self.guests[number];
        guest.ended = true;
        let status = guest.session.wait(PROCESS_GRACE);
        guest.session.clear_away();
        let summary = &mut guest.summary;
        summary.message = guest.session.how_it_ended(&status);
        let code = status.ok().and_then(|status| status.code());
        summary.status = code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
        if summary.status != 0 && summary.outcome.is_some() {
            summary.console = guest.session.console_tail(CONSOLE_LINES);
        }
        self.show(number);
        let message = self.guests[number].summary.message.clone();
        self.screen.done(number, &message);
    }

    /// Another process takes the place of one whose guest asked for a restart.
    fn restart(&mut self, number: usize) {
        // Nothing of the old one may be there any more: its sockets, its taps and its locks on disks.
        let gone = self.guests[number].session.wait(PROCESS_GRACE);
        let started = gone.and_then(|_| self.start(number));
        let guest = &mut self.guests[number];
        match started {
            Ok(session) => {
                guest.restarted(session);
                self.screen.event(&LaunchEvent::Restart {
                    guest: guest.summary.name.clone(),
                    restarts: guest.summary.restarts,
                });
                self.show(number);
            }
            Err(error) => {
                guest.ended = true;
                guest.summary.status = 1;
                guest.summary.message = format!("its VMM cannot be started again: {error}");
                self.show(number);
            }
        }
    }

    fn show(&mut self, number: usize) {
        let summary = &self.guests[number].summary;
        let text = match summary.state.as_str() {
            "ended" | "failed" => summary.message.clone(),
            state => state.to_owned(),
        };
        let (name, text) = (summary.name.clone(), text);
        self.screen.state(number, &name, &text);
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some((host, _)) = &self.host {
            host.close();
        }
        // Their processes are killed and waited for: the group holds them until then.
        self.guests.clear();
        self.release_brake();
    }
}

/// Manages the guests that knock at `dir`, on threads of its own.
pub fn manage(dir: &Path, settings: &Settings, backing: Pages) -> Result<(Host, api::Server), FleetError> {
    let host = Host::open(Sockets::in_dir(dir), *settings, backing)?;
    let api = api::serve(host.clone(), dir)?;
    let running = host.clone();
    let body = move || running.run();
    std::thread::Builder::new()
        .name("manager".into())
        .spawn(body)
        .map_err(|e| FleetError::Thread(levy_protocol::not_started(e)))?;
    Ok((host, api))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ScreenStyle;
    use levy_machine::process::block_end_signals;

    /// Guests that end at once: this program is not `levy`.
    fn plan(guests: usize, group: Choice) -> Plan {
        let guest = |number| PlannedGuest {
            name: format!("g{number}"),
            args: Vec::new(),
            workload: None,
            on_reboot: OnReboot::Exit,
            layers: Vec::new(),
        };
        let settings = Box::new(Settings::new(Pages::from_mib(256)));
        Plan {
            guests: (1..=guests).map(guest).collect(),
            patience: Duration::ZERO,
            keep: false,
            manager: Manager::Own(settings, Pages::from_mib(256), group),
        }
    }

    #[test]
    fn the_brake_holds_until_the_last_guest_has_ended() {
        let parent = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("cgroup.controllers", "memory"),
            ("cgroup.subtree_control", "memory"),
            ("cgroup.procs", ""),
        ] {
            std::fs::write(parent.path().join(name), text).unwrap();
        }
        let signals = block_end_signals().unwrap();
        let plan = plan(2, Choice::Below(parent.path().to_owned()));
        let mut fleet = Fleet::launch(plan, Screen::new(ScreenStyle::Json), signals).unwrap();
        let high = parent
            .path()
            .join(format!("levy-{}", std::process::id()))
            .join("memory.high");
        // A group that was given up says so, for guests that may still be in it.
        let is_given_up = || std::fs::read_to_string(&high).is_ok_and(|text| text == "max");
        assert!(high.parent().unwrap().is_dir());
        fleet.stop(0, Duration::ZERO);
        assert!(!is_given_up(), "the first stop lets all guests go");
        let summary = fleet.run();
        assert!(is_given_up());
        assert_eq!(summary.guests.len(), 2);
    }

    #[test]
    fn a_process_that_answers_nothing_holds_no_launcher() {
        let signals = block_end_signals().unwrap();
        let mut plan = plan(1, Choice::Off);
        plan.manager = Manager::None;
        let mut fleet = Fleet::launch(plan, Screen::new(ScreenStyle::Json), signals).unwrap();
        let control = fleet.guests[0].session.files().control.clone();
        let listener = std::os::unix::net::UnixListener::bind(control).unwrap();
        type Deed = fn(&mut Fleet);
        let deeds: [Deed; 4] = [
            |fleet| fleet.ready(0),
            |fleet| fleet.verdict(0),
            |fleet| fleet.stop(0, Duration::ZERO),
            |fleet| {
                fleet.guests[0].verdict_due = Some(Instant::now());
                fleet.give_up_on_late_verdicts();
            },
        ];
        let mut asking = Vec::new();
        for deed in deeds {
            deed(&mut fleet);
            let (client, _) = listener.accept().unwrap();
            let mut lines = io::BufReader::new(client);
            io::BufRead::read_line(&mut lines, &mut String::new()).unwrap();
            // The launcher is back, and its question still open.
            lines.get_ref().set_nonblocking(true).unwrap();
            let more = io::Read::read(&mut lines, &mut [0]).unwrap_err();
            assert_eq!(more.kind(), io::ErrorKind::WouldBlock);
            asking.push(lines);
        }
        let due = fleet.guests[0].stop.kill_at.unwrap();
        assert!(due <= Instant::now() + ANSWER_PATIENCE);
        fleet.run();
    }
}
