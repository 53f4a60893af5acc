//! Guests under a manager of the bench's own.
//!
//! ```no_run
//! # fn bench(params: &levy_bench::Params) -> Result<(), levy_bench::TestbedError> {
//! use std::time::Duration;
//! use levy_bench::Testbed;
//!
//! let mut settings = params.settings(1 << 30);
//! settings.rebalance = Duration::from_secs(5);
//! let mut testbed = Testbed::open(params, settings)?;
//! let guest = testbed.start_usual("web")?;
//! testbed.ready(&[guest])?;
//! let run = testbed.run(guest, "churn mib=32 seconds=10")?;
//! let verdict = testbed.verdict(run)?;
//! testbed.pass(Duration::from_secs(5))?; // quiet
//! println!("{} {}/s, {} samples", verdict.rate, verdict.unit, testbed.samples().len());
//! # Ok(()) }
//! ```

mod changes;
mod error;
mod guest;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use levy_agent::{Action, Verdict, Workload};
use serde_json::{Map, Value};

pub use self::error::TestbedError;
use self::guest::TestGuest;
pub use self::guest::{Run, Tick};
use super::progress::Progress;
use super::sample::Sample;
use super::{Interrupt, Params, PartialResults};
use levy_launcher::{self, FleetError, GuestArgs, Note, Session, SessionFiles};
use levy_manager::api::{self, view};
use levy_manager::host::Host;
use levy_manager::policy::Settings;
use levy_protocol::GuestEvent;
use levy_protocol::control::Request;
use levy_protocol::run_dir::RunDir;

/// Time between two samples.
const SAMPLE: Duration = Duration::from_secs(1);
/// How often Ctrl-C is looked for.
const TICK: Duration = Duration::from_millis(200);
/// How much longer than it announces a run may take: setting up a service on an emulated host takes minutes.
const RUN_PATIENCE: Duration = Duration::from_secs(600);
/// How long an agent may take to answer a command while it works.
const ANSWER_PATIENCE: Duration = Duration::from_secs(120);
/// How long a process may take to end.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// Lines of console in the message about a guest that ended.
const CONSOLE_LINES: usize = 10;

/// A guest of a testbed, in the order of start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Guest(usize);

/// Something that a guest was asked to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunId {
    /// Whom.
    pub guest: Guest,
    id: u64,
}

/// A manager and its guests. Dropping it takes all guests down and removes what was made for them.
///
/// There is one testbed in a process at a time. Everything that waits ([`Testbed::pass`], [`Testbed::until`] and what is built
/// on them) samples once a second, and fails when a guest ends unasked or the user interrupts.
pub struct Testbed {
    guests: Vec<TestGuest>,
    host: Host,
    _api: api::Server,
    usual: GuestArgs,
    deadline: Duration,
    interrupt: Interrupt,
    progress: Progress,
    notes: Sender<(usize, Note)>,
    heard: Receiver<(usize, Note)>,
    began: Instant,
    samples: Vec<Sample>,
    sample_due: Instant,
    partial: PartialResults,
    // Last: removed when no process uses it any more.
    dir: RunDir,
}

impl Testbed {
    /// A manager with `settings` and no guests.
    ///
    /// # Errors
    /// When the host refuses a folder, a socket or a thread.
    pub fn open(params: &Params, settings: Settings) -> Result<Self, TestbedError> {
        let dir = RunDir::new().map_err(FleetError::RunDir)?;
        let (host, api) = levy_launcher::manage(dir.path(), &settings, params.backing)?;
        let (notes, heard) = channel();
        Ok(Self {
            guests: Vec::new(),
            host,
            _api: api,
            usual: params.guest.clone(),
            deadline: params.deadline,
            interrupt: params.interrupt.clone(),
            progress: Progress::new(),
            notes,
            heard,
            began: Instant::now(),
            samples: Vec::new(),
            sample_due: Instant::now() + SAMPLE,
            partial: params.partial.clone(),
            dir,
        })
    }

    /// Starts a guest made of what the user chose.
    ///
    /// # Errors
    /// When its process cannot be started. What goes wrong in it shows when something is waited for.
    pub fn start_usual(&mut self, name: &str) -> Result<Guest, TestbedError> {
        let guest = self.usual.clone();
        self.start(name, &guest)
    }

    /// Starts a guest made of `guest`: a changed clone of [`Params`]'s.
    ///
    /// # Errors
    /// As [`Testbed::start_usual`].
    pub(crate) fn start(&mut self, name: &str, guest: &GuestArgs) -> Result<Guest, TestbedError> {
        let number = self.guests.len();
        let mut args = guest.to_args();
        let deadline = format!("{}ms", self.deadline.as_millis());
        args.extend(["--deadline".into(), deadline.into()]);
        args.extend(["--manager".into(), self.dir.path().into()]);
        let notes = self.notes.clone();
        let listener = move |note| {
            let _ = notes.send((number, note));
        };
        let files = SessionFiles::numbered(self.dir.path(), number);
        let started = Session::launch(name, &args, files, listener);
        let session = started.map_err(|source| TestbedError::Start {
            name: name.to_owned(),
            source,
        })?;
        self.guests.push(TestGuest::new(name, session));
        Ok(Guest(number))
    }

    /// Waits until the agents of `guests` take commands. Each guest has its own deadline for that.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub fn ready(&mut self, guests: &[Guest]) -> Result<(), TestbedError> {
        let patience = self.deadline + END_PATIENCE;
        self.until(patience, "a guest is ready", |testbed| {
            guests
                .iter()
                .all(|guest| testbed.guests[guest.0].ready)
                .then_some(())
        })
    }

    /// Has `guest` run a workload, written as `churn mib=32 seconds=10`. Several runs in one guest go on side by side.
    ///
    /// # Errors
    /// When the words are not a workload, or the agent cannot be reached.
    pub fn run(&mut self, guest: Guest, words: &str) -> Result<RunId, TestbedError> {
        let mut words = words.split_whitespace();
        let name = words.next().unwrap_or_default();
        let workload = Workload::from_words(name, words).map_err(TestbedError::Workload)?;
        let id = self.command(guest, Action::Run(workload))?;
        Ok(RunId { guest, id })
    }

    /// Ends a run early; it still gives its verdict.
    ///
    /// # Errors
    /// When the agent cannot be reached.
    pub fn stop_run(&mut self, run: RunId) -> Result<(), TestbedError> {
        self.command(run.guest, Action::Stop { target: run.id })
            .map(|_| ())
    }

    /// What a run has said so far.
    ///
    /// # Panics
    /// When `run` is another testbed's.
    pub fn run_of(&self, run: RunId) -> &Run {
        &self.guests[run.guest.0].runs[&run.id]
    }

    /// Waits for a run's verdict, up to the time it announced and ten minutes more.
    ///
    /// # Errors
    /// When none comes, or a bad one: then the guest's data was wrong, or it could not run.
    pub fn verdict(&mut self, run: RunId) -> Result<Verdict, TestbedError> {
        let name = self.run_of(run).name.clone();
        let what = format!("{name} in guest {} gives its verdict", self.name(run.guest));
        // The patience counts from the run's last word: a run without end says something every second.
        let mut quiet_since = (Instant::now(), 0);
        let verdict = loop {
            let said = self.run_of(run).ticks.len();
            if said != quiet_since.1 {
                quiet_since = (Instant::now(), said);
            }
            if let Some(verdict) = self.run_of(run).verdict.clone() {
                break verdict;
            }
            if quiet_since.0.elapsed() > RUN_PATIENCE {
                return Err(TestbedError::Late {
                    what,
                    after: RUN_PATIENCE,
                });
            }
            self.turn(Instant::now() + TICK)?;
        };
        if verdict.ok {
            let Verdict {
                ops, unit, detail, ..
            } = &verdict;
            self.say(&format!(
                "{}: {name} did {ops} {unit} {detail}",
                self.name(run.guest)
            ));
            return Ok(verdict);
        }
        Err(TestbedError::Failed {
            name: self.name(run.guest).to_owned(),
            run: name,
            detail: verdict.detail,
        })
    }

    /// Has guest `number` of several do all of `works`, one after the other, with `{n}` in them for its number. What ends
    /// with `&` goes on while others run, once it has set itself up, and is returned: end it with [`Testbed::finish`].
    ///
    /// # Errors
    /// As [`Testbed::run`] and [`Testbed::verdict`].
    pub fn work(&mut self, guest: Guest, number: u32, works: &[String]) -> Result<Vec<RunId>, TestbedError> {
        let mut beside = Vec::new();
        for words in works {
            let words = words.replace("{n}", &number.to_string());
            let Some(words) = words.trim_end().strip_suffix('&') else {
                let run = self.run(guest, &words)?;
                self.verdict(run)?;
                continue;
            };
            let run = self.run(guest, words)?;
            self.until(RUN_PATIENCE, "what goes on beside sets itself up", |testbed| {
                testbed.run_of(run).is_set_up().then_some(())
            })?;
            beside.push(run);
        }
        Ok(beside)
    }

    /// Ends runs early, and waits for their verdicts.
    ///
    /// # Errors
    /// As [`Testbed::verdict`].
    pub fn finish(&mut self, runs: &[RunId]) -> Result<(), TestbedError> {
        runs.iter().try_for_each(|run| self.stop_run(*run))?;
        runs.iter().try_for_each(|run| self.verdict(*run).map(|_| ()))
    }

    /// Tells a guest's agent something other than to run a workload (`Meminfo`, `Exec`, ...) and waits for the answer.
    ///
    /// # Errors
    /// When no answer comes, or a refusal.
    pub fn tell(&mut self, guest: Guest, action: Action) -> Result<Map<String, Value>, TestbedError> {
        let mut patience = ANSWER_PATIENCE;
        if let Action::Exec { seconds, .. } = &action {
            patience += Duration::from_secs(*seconds);
        }
        let id = self.command(guest, action)?;
        let what = format!("the agent of guest {} answers", self.name(guest));
        let answer = self.until(patience, &what, |testbed| {
            testbed.guests[guest.0].answers.get(&id).cloned()
        })?;
        answer.map_err(|message| TestbedError::Refused {
            name: self.name(guest).to_owned(),
            message,
        })
    }

    /// Asks a guest's VMM something over its control socket.
    ///
    /// # Errors
    /// When it refuses or is gone.
    pub fn ask(&self, guest: Guest, request: &Request) -> Result<Value, TestbedError> {
        let guest = &self.guests[guest.0];
        guest
            .session
            .ask(request)
            .map_err(|source| TestbedError::Control {
                name: guest.name.clone(),
                source,
            })
    }

    /// Stops the virtual CPUs of a guest; they have left it when this returns.
    ///
    /// # Errors
    /// As [`Testbed::ask`].
    pub fn pause(&self, guest: Guest) -> Result<(), TestbedError> {
        self.ask(guest, &Request::Pause).map(|_| ())
    }

    /// Lets them run again.
    ///
    /// # Errors
    /// As [`Testbed::ask`].
    pub fn resume(&self, guest: Guest) -> Result<(), TestbedError> {
        self.ask(guest, &Request::Resume).map(|_| ())
    }

    /// The manager, for what is not asked here.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// A guest's name.
    ///
    /// # Panics
    /// When `guest` is another testbed's.
    pub fn name(&self, guest: Guest) -> &str {
        &self.guests[guest.0].name
    }

    /// The process of a guest, once the manager has admitted it.
    pub fn pid(&self, guest: Guest) -> Option<u32> {
        let registry = self.host.registry();
        let name = self.name(guest);
        registry
            .guests()
            .find(|(_, process)| process.name == name)
            .map(|(_, process)| process.id.pid)
    }

    /// Seconds since the testbed was opened.
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// All samples so far, one a second.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// A step of the bench, for the user.
    pub fn say(&self, text: &str) {
        self.progress.say(text);
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// When a guest ends, or the user interrupts.
    pub fn pass(&mut self, time: Duration) -> Result<(), TestbedError> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.turn(until)?;
        }
        Ok(())
    }

    /// Waits until `found` finds something, looking after every event and every fifth of a second.
    ///
    /// # Errors
    /// When that takes longer than `patience`; `what` says what did not happen.
    pub fn until<T>(
        &mut self,
        patience: Duration,
        what: &str,
        mut found: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T, TestbedError> {
        let until = Instant::now() + patience;
        loop {
            if let Some(thing) = found(self) {
                return Ok(thing);
            }
            if Instant::now() >= until {
                return Err(TestbedError::Late {
                    what: what.to_owned(),
                    after: patience,
                });
            }
            self.turn(until)?;
        }
    }

    /// The next event, or a fifth of a second, whichever is shorter.
    fn turn(&mut self, until: Instant) -> Result<(), TestbedError> {
        if self.interrupt.is_wanted() {
            return Err(TestbedError::Interrupted);
        }
        let next = until.min(self.sample_due).min(Instant::now() + TICK);
        match self
            .heard
            .recv_timeout(next.saturating_duration_since(Instant::now()))
        {
            Ok((number, note)) => self.handle(number, note)?,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        if Instant::now() >= self.sample_due {
            self.sample();
        }
        Ok(())
    }

    fn handle(&mut self, number: usize, note: Note) -> Result<(), TestbedError> {
        let now = self.seconds();
        match note {
            Note::Vmm(event) => self.vmm_said(number, &event),
            Note::Agent(event) => {
                self.guests[number].hear(event.id, &event.report, now);
                Ok(())
            }
            // What a bench's guest says is little, and what is missing shows in what is waited for.
            Note::Missed(_) => Ok(()),
            Note::Closed => Err(self.closed(number)),
        }
    }

    fn vmm_said(&mut self, number: usize, event: &GuestEvent) -> Result<(), TestbedError> {
        let guest = &mut self.guests[number];
        guest.session.heard(event);
        guest.session.connect().map_err(|source| TestbedError::Agent {
            name: guest.name.clone(),
            source,
        })
    }

    fn closed(&mut self, number: usize) -> TestbedError {
        let TestGuest { name, session, .. } = &mut self.guests[number];
        let status = session.wait(END_PATIENCE);
        TestbedError::Ended {
            name: name.clone(),
            how: session.how_it_ended(&status),
            console: session.console_tail(CONSOLE_LINES).join("\n"),
        }
    }

    fn command(&mut self, guest: Guest, action: Action) -> Result<u64, TestbedError> {
        let now = self.seconds();
        let guest = &mut self.guests[guest.0];
        let name = guest.name.clone();
        guest
            .command(action, now)
            .map_err(|source| TestbedError::Agent { name, source })
    }

    fn sample(&mut self) {
        // Late samples are not made up for.
        self.sample_due = (self.sample_due + SAMPLE).max(Instant::now());
        let seconds = self.seconds();
        let mut sample = {
            let picture = self.host.picture();
            Sample::of(
                seconds,
                &view::host(&self.host, &picture),
                &view::guests(&picture, None),
            )
        };
        for guest in &mut sample.guests {
            let known = self.guests.iter().find(|known| known.name == guest.name);
            if let Some(tick) = known
                .and_then(TestGuest::last_run)
                .and_then(|run| run.ticks.last())
            {
                (guest.ops, guest.rate) = (tick.ops, tick.rate);
            }
        }
        self.progress.state(&sample.to_string());
        self.samples.push(sample);
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        // Whatever becomes of the bench, this was measured.
        self.partial.set("samples", &self.samples);
        self.host.close();
        // Their processes are killed and waited for, before the folder goes that they use.
        self.guests.clear();
    }
}
