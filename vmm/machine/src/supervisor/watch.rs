//! Watching a running guest until it ends.

use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use levy_agent::{Action, Command};
use serde::Serialize;
use serde_json::{Value, json};

use super::build::Machine;
use super::due::{Dues, WhatIsDue};
use super::footprint::Footprint;
use crate::event::Event;
use crate::process::Report;
use crate::virtio::Figures;
use crate::virtio::balloon::{BalloonHandle, Change};
use levy_member::{Inventory, Key, PageFigures};
use levy_protocol::GuestState;
use levy_protocol::control::{Reply, Request};
use levy_protocol::outcome::Outcome;

/// How long a guest may take to switch itself off when the host is told to end (Ctrl-C).
const SIGNAL_GRACE: Duration = Duration::from_secs(3);
/// Command ids of the VMM's own; a launcher counts from 1.
const OWN_ID: u64 = u64::MAX >> 11;

/// When the guest came how far, in milliseconds since its process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timing {
    /// The vCPUs were let go.
    pub started_ms: Option<u64>,
    /// The agent's first line.
    pub booted_ms: Option<u64>,
    /// The agent's word that it is ready.
    pub ready_ms: Option<u64>,
}

/// One guest and all that is known about it.
pub struct Supervisor<'a> {
    machine: Machine,
    events: Receiver<Event>,
    report: &'a mut Report,
    began: Instant,
    timing: Timing,
    panic: Option<String>,
    dues: Dues,
    deadline: Option<Duration>,
    stopping: bool,
}

impl<'a> Supervisor<'a> {
    /// A supervisor of `machine`, of which it hears through `events`; `began` is when its process started.
    pub fn new(machine: Machine, events: Receiver<Event>, report: &'a mut Report, began: Instant) -> Self {
        Self {
            machine,
            events,
            report,
            began,
            timing: Timing::default(),
            panic: None,
            dues: Dues::default(),
            deadline: None,
            stopping: false,
        }
    }

    /// Lets the guest run and watches it to its end, which takes it down. `deadline` bounds the time to `ready`.
    pub fn run(mut self, deadline: Option<Duration>) -> Outcome {
        self.deadline = deadline;
        // A deadline beyond what the clock can say is none.
        self.dues = Dues::ready_by(deadline.and_then(|time| self.began.checked_add(time)));
        self.machine.vcpus.resume();
        self.timing.started_ms = Some(self.elapsed_ms());
        self.report.state(GuestState::Running, self.elapsed_ms());
        loop {
            // What is due comes first: events may follow each other without end.
            let outcome = match self.dues.at(Instant::now()) {
                Some(what) => self.overdue(what),
                None => self.next().and_then(|event| self.handle(event)),
            };
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }

    fn next(&self) -> Option<Event> {
        let Some((at, _)) = self.dues.first() else {
            // The machine holds a sender, so the channel stays open.
            return self.events.recv().ok();
        };
        let left = at.saturating_duration_since(Instant::now());
        self.events.recv_timeout(left).ok()
    }

    fn overdue(&mut self, what: WhatIsDue) -> Option<Outcome> {
        match what {
            WhatIsDue::Ready => {
                let limit = self.deadline.unwrap_or_default();
                Some(self.hung(&format!("not ready within {limit:?}")))
            }
            WhatIsDue::PowerOff => Some(Outcome::Killed),
            WhatIsDue::Restart => Some(Outcome::Panicked {
                message: self.panic.take().unwrap_or_default(),
            }),
        }
    }

    fn handle(&mut self, event: Event) -> Option<Outcome> {
        match event {
            Event::PoweredOff if self.stopping => Some(Outcome::Stopped),
            Event::PoweredOff => Some(Outcome::PoweredOff),
            Event::Restarted => Some(match self.panic.take() {
                Some(message) => Outcome::Panicked { message },
                // It was asked to end, and has: whatever its own idea of that.
                None if self.stopping => Outcome::Stopped,
                None => Outcome::Rebooted,
            }),
            Event::Crashed(message) => Some(match self.panic.take() {
                Some(message) => Outcome::Panicked { message },
                None => Outcome::Crashed { message },
            }),
            Event::Panicked(message) => {
                self.note_panic(message);
                None
            }
            Event::AgentSpoke => {
                let now = self.elapsed_ms();
                self.timing.booted_ms = Some(now);
                self.report.state(GuestState::Booted, now);
                None
            }
            Event::AgentReady => {
                let now = self.elapsed_ms();
                self.timing.ready_ms = Some(now);
                self.machine.up.store(true, Ordering::SeqCst);
                self.report.state(GuestState::Ready, now);
                self.dues.is_ready();
                None
            }
            Event::Signal(name) => self.signal(name),
            Event::Control(request, reply) => {
                let (answer, outcome) = self.serve(request);
                // The client that asked may be gone.
                let _ = reply.send(answer);
                outcome
            }
        }
    }

    fn note_panic(&mut self, message: String) {
        if self.panic.is_none() {
            self.report.state(GuestState::Panicked, self.elapsed_ms());
        }
        // The console's words say more than pvpanic's; keep whichever came with words.
        if self
            .panic
            .as_ref()
            .is_none_or(|known| !known.starts_with("Kernel"))
        {
            self.panic = Some(message);
        }
        self.dues.panicked(Instant::now());
    }

    /// The first signal asks the guest, a second one does not.
    fn signal(&mut self, name: &'static str) -> Option<Outcome> {
        if self.stopping || !self.ask_to_power_off(SIGNAL_GRACE) {
            return Some(Outcome::Killed);
        }
        log::info!("{name}: asked the guest to switch itself off");
        None
    }

    /// Asks the guest to switch itself off within `grace`: its agent, or, where that is not there, what in it listens
    /// to the power button. `false` when the guest cannot do anything because it is paused.
    fn ask_to_power_off(&mut self, grace: Duration) -> bool {
        if self.is_paused() {
            return false;
        }
        let told = self.timing.ready_ms.is_some() && self.tell_agent(Action::Poweroff);
        if !told {
            // An eventfd refuses only when it was signalled 2^64 times: the button is pressed then anyway.
            let _ = self.machine.devices.handles.power_button.write(1);
        }
        self.stopping = true;
        self.dues.stop(Instant::now(), grace);
        true
    }

    /// Sends the agent a command; `false` when too much waits for it already.
    fn tell_agent(&self, action: Action) -> bool {
        let handles = &self.machine.devices.handles;
        let line = Command { id: OWN_ID, action }.to_line();
        let sent = handles.console.send(line.as_bytes());
        if let Some(kick) = handles.plug("console").and_then(|plug| plug.kicks().first()) {
            let _ = kick.write(1);
        }
        sent
    }

    fn serve(&mut self, request: Request) -> (Reply, Option<Outcome>) {
        match request {
            Request::Status => (Reply::Ok(self.status()), None),
            Request::Stats => (self.stats(), None),
            Request::Registers => (Reply::Ok(json!({"vcpus": self.registers()})), None),
            Request::Pause => {
                self.machine.paused.store(true, Ordering::SeqCst);
                let stuck = self.machine.vcpus.pause().iter().filter(|p| p.is_none()).count();
                match stuck {
                    0 => (Reply::Ok(json!({"state": GuestState::Paused})), None),
                    n => (
                        Reply::Error(format!("{n} vCPUs did not leave the guest within 5 s")),
                        None,
                    ),
                }
            }
            Request::Resume => {
                self.machine.vcpus.resume();
                self.machine.paused.store(false, Ordering::SeqCst);
                (Reply::Ok(json!({"state": GuestState::Running})), None)
            }
            Request::Inventory { key, first, pages } => (self.inventory(&key, first, pages), None),
            Request::Balloon {
                amount_mib,
                deflate_on_oom,
                stats_polling_interval_s,
            } => {
                let change = Change {
                    amount_mib,
                    deflate_on_oom,
                    stats_polling_interval_s,
                };
                (self.change_balloon(change), None)
            }
            Request::BalloonStatistics => {
                let statistics = |balloon: &BalloonHandle| Reply::Ok(balloon.picture().balloon_statistics());
                (self.with_balloon(statistics), None)
            }
            Request::Stop { grace_ms } => {
                let asked = self.ask_to_power_off(Duration::from_millis(grace_ms));
                let outcome = (!asked).then_some(Outcome::Killed);
                (Reply::Ok(json!({"asked": asked})), outcome)
            }
            Request::Restart => {
                let told = self.timing.ready_ms.is_some() && self.tell_agent(Action::Reboot);
                match told {
                    true => (Reply::Ok(json!({"asked": true})), None),
                    false => (
                        Reply::Error("the guest has no agent that listens".to_owned()),
                        None,
                    ),
                }
            }
            Request::GiveUp { because } => {
                let outcome = self.hung(&because);
                (Reply::Ok(json!({"message": outcome.to_string()})), Some(outcome))
            }
        }
    }

    fn is_paused(&self) -> bool {
        self.machine.paused.load(Ordering::SeqCst)
    }

    fn change_balloon(&self, change: Change) -> Reply {
        self.with_balloon(|balloon| match balloon.change(change) {
            Ok(picture) => Reply::Ok(picture.figures()),
            Err(error) => Reply::Error(error.to_string()),
        })
    }

    fn with_balloon(&self, what: impl FnOnce(&BalloonHandle) -> Reply) -> Reply {
        match &self.machine.devices.handles.balloon {
            Some(balloon) => what(balloon),
            None => Reply::Error("this guest has no balloon; start it with --balloon size=0".to_owned()),
        }
    }

    fn inventory(&self, key: &str, first: u32, pages: u32) -> Reply {
        let Some(key) = Key::parse(key) else {
            return Reply::Error("the key is not 64 hexadecimal digits".to_owned());
        };
        if !self.is_paused() {
            return Reply::Error("the guest runs and changes its pages; pause it first".to_owned());
        }
        match self.machine.vm.ram().manager() {
            Some(region) => Reply::Ok(json!(Inventory::take(region, &key, first, pages))),
            None => Reply::Error("this guest's memory is not managed; start it with --manager".to_owned()),
        }
    }

    fn registers(&mut self) -> Vec<Option<crate::vm::Registers>> {
        let registers = self.machine.vcpus.pause();
        if !self.is_paused() {
            self.machine.vcpus.resume();
        }
        registers
    }

    fn hung(&mut self, what: &str) -> Outcome {
        let stage = match (self.timing.ready_ms, self.timing.booted_ms) {
            (Some(_), _) => "it was ready before",
            (None, Some(_)) => "its agent had started",
            (None, None) => "its agent never spoke",
        };
        let vcpus: Vec<_> = (0..)
            .zip(self.machine.vcpus.pause())
            .map(|(id, registers)| match registers {
                Some(registers) => format!("vCPU {id}: {registers}"),
                None => format!("vCPU {id}: did not leave the guest"),
            })
            .collect();
        Outcome::Hung {
            message: format!("{what}; {stage}; {}", vcpus.join(", ")),
        }
    }

    fn status(&self) -> Value {
        let state = match () {
            () if self.is_paused() => GuestState::Paused,
            () if self.panic.is_some() => GuestState::Panicked,
            () if self.stopping => GuestState::Stopping,
            () if self.timing.ready_ms.is_some() => GuestState::Ready,
            () if self.timing.booted_ms.is_some() => GuestState::Booted,
            () => GuestState::Running,
        };
        json!({"state": state, "pid": std::process::id(), "uptime_ms": self.elapsed_ms(), "timing": self.timing})
    }

    fn stats(&self) -> Reply {
        let ram = self.machine.vm.ram();
        let memory = match Footprint::measure(&self.machine.smaps, ram.regions()) {
            Ok(memory) => memory,
            Err(e) => return Reply::Error(format!("cannot read /proc/self/smaps: {e}")),
        };
        let handles = &self.machine.devices.handles;
        let plugs: serde_json::Map<_, _> = handles
            .plugs
            .iter()
            .map(|plug| (plug.name().to_owned(), json!(plug.stats())))
            .collect();
        let balloon = handles
            .balloon
            .as_ref()
            .map(|balloon| balloon.picture().figures());
        let console = handles.console.stats();
        let disks: Vec<_> = handles.disk_figures.iter().map(Figures::get).collect();
        let nets: Vec<_> = handles.nets.iter().map(Figures::get).collect();
        Reply::Ok(json!({
            "memory": memory,
            "released_pages": ram.released_pages(),
            "pages": ram.manager().map(|region| PageFigures::of(&region.stats(), ram.shared_read_blocks().told())),
            "balloon": balloon,
            "devices": plugs,
            "disks": disks,
            "nets": nets,
            "console": console,
            "unknown_accesses": self.machine.devices.bus.unknown_accesses(),
        }))
    }

    fn elapsed_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}
