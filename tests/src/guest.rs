//! A running guest.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use guest_images::agent_protocol::{Action, Event, Report};
use levy_launcher::{OneGuest, WaitError};
use levy_protocol::control::{ClientError, Request};
use rustix::process::Signal;
use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::console::{self, Trouble};

/// No wait is longer, on emulated and busy hosts neither; a wait that gets there is a hang.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// How often the VMM is asked whether it is as it should be.
const TICK: Duration = Duration::from_millis(50);

/// Lines of console and events that a failure shows.
const SHOWN: usize = 20;

/// A running guest. Killed when dropped.
pub struct Guest {
    name: String,
    session: OneGuest,
    /// All events so far.
    events: Vec<Event>,
    directory: TempDir,
    trouble: Trouble,
}

/// How a guest's VMM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit status; 128 + signal where a signal ended it.
    pub status: i32,
    /// How, in its VMM's words, and what the VMM said on standard error.
    pub message: String,
    /// What the guest said on its console.
    pub console: String,
}

impl Guest {
    pub(crate) fn new(name: String, session: OneGuest, directory: TempDir, trouble: Trouble) -> Self {
        Self {
            name,
            session,
            events: Vec::new(),
            directory,
            trouble,
        }
    }

    /// The VMM's process.
    pub fn pid(&self) -> u32 {
        self.session.pid()
    }

    /// Waits until the agent obeys commands.
    pub fn ready(&mut self) {
        self.until("ready", |event| {
            matches!(event.report, Report::Ready { .. }).then_some(())
        });
    }

    /// Waits until its vCPUs run.
    pub fn running(&mut self) {
        if let Err(error) = self.session.running(PATIENCE) {
            self.fail(&format!("waited for vCPUs: {error}"));
        }
    }

    /// Presses Ctrl-C.
    pub fn interrupt(&self) {
        if let Err(error) = self.session.signal(Signal::INT) {
            self.fail(&format!("cannot interrupt: {error}"));
        }
    }

    /// Kills the VMM with SIGKILL, as if it had never known, and waits for its end.
    pub fn kill(&mut self) {
        self.session.kill();
    }

    /// Asks the VMM, not the guest.
    pub fn vmm(&self, request: &Request) -> Value {
        self.try_vmm(request)
            .unwrap_or_else(|error| self.fail(&format!("{request:?}: {error}")))
    }

    /// As [`Guest::vmm`], of a VMM that may refuse or have ended.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub fn try_vmm(&self, request: &Request) -> Result<Value, ClientError> {
        self.session.ask_within(PATIENCE, request)
    }

    /// Waits until the VMM's answer to `request` is as `wanted`, and returns it.
    pub fn vmm_until(&self, what: &str, request: &Request, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let answer = self.vmm(request);
            if wanted(&answer) {
                return answer;
            }
            if Instant::now() > until {
                self.fail(&format!("waited for {what}; at last: {answer}"));
            }
            std::thread::sleep(TICK);
        }
    }

    /// The path of a file of this guest: `agent`, `console`, `control` or `vmm`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Sends a command and returns its number.
    pub fn command(&mut self, action: Action) -> u64 {
        let what = format!("{action:?}");
        self.session
            .command(action)
            .unwrap_or_else(|error| self.fail(&format!("cannot send {what}: {error}")))
    }

    /// Sends a command and waits for what it answers.
    pub fn ask(&mut self, action: Action) -> Map<String, Value> {
        let id = self.command(action);
        let answer = self.until("an answer", |event| {
            if event.id != Some(id) {
                return None;
            }
            match &event.report {
                Report::Done { values } => Some(Ok(values.clone())),
                Report::Error { message } => Some(Err(message.clone())),
                _ => None,
            }
        });
        answer.unwrap_or_else(|message| self.fail(&format!("command {id} failed: {message}")))
    }

    /// Runs a program in the guest and returns what it wrote.
    pub fn exec(&mut self, words: &[&str]) -> String {
        let values = self.try_exec(words);
        if values.get("status").and_then(Value::as_i64) != Some(0) {
            self.fail(&format!("{words:?} failed: {values:?}"));
        }
        values
            .get("stdout")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    }

    /// Runs a program in the guest that may fail: `status`, `stdout` and `stderr`.
    pub fn try_exec(&mut self, words: &[&str]) -> Map<String, Value> {
        let argv = words.iter().map(ToString::to_string).collect();
        self.ask(Action::Exec { argv, seconds: 60 })
    }

    /// Switches it off from inside and waits for the VMM's end.
    pub fn power_off(mut self) -> Ended {
        self.command(Action::Poweroff);
        self.end()
    }

    /// Waits for the VMM's end.
    pub fn end(mut self) -> Ended {
        let status = match self.session.end(PATIENCE) {
            Ok(status) => status,
            Err(error) => self.fail(&format!("waited for the end of the vmm: {error}")),
        };
        let ended = Ended {
            message: format!("{}\n{}", self.session.how_it_ended(&Ok(status)), self.log()),
            status: code(status),
            console: self.console(),
        };
        if self.trouble == Trouble::Fails
            && let Some(line) = console::trouble(&ended.console)
        {
            self.fail(&format!("trouble inside: {line}"));
        }
        ended
    }

    /// The console so far.
    pub fn console(&self) -> String {
        self.session.console()
    }

    /// What the VMM said on standard error so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.path("vmm")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for an event that `wanted` makes something of. Events of the past count too.
    pub fn until<T>(&mut self, what: &str, wanted: impl Fn(&Event) -> Option<T>) -> T {
        match self.events.iter().find_map(&wanted) {
            Some(found) => found,
            None => self.until_next(what, wanted),
        }
    }

    /// As [`Guest::until`], of events that are still to come.
    pub fn until_next<T>(&mut self, what: &str, wanted: impl Fn(&Event) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let event = match self.session.next(left) {
                Ok(event) => event,
                Err(WaitError::Late(_)) => self.fail(&format!("waited {} s for {what}", PATIENCE.as_secs())),
                Err(error) => self.fail(&format!("waited for {what}, but {error}")),
            };
            let found = wanted(&event);
            self.events.push(event);
            if let Some(found) = found {
                return found;
            }
        }
    }

    /// Takes in what it has said by now.
    pub(crate) fn read_all(&mut self) {
        while let Some(event) = self.session.next_if_there() {
            self.events.push(event);
        }
    }

    /// Fails the test with everything known of this guest.
    pub(crate) fn fail(&self, what: &str) -> ! {
        let events: Vec<_> = self
            .events
            .iter()
            .rev()
            .take(SHOWN)
            .rev()
            .map(Event::to_line)
            .collect();
        panic!(
            "guest {}: {what}\n--- vmm\n{}\n--- events\n{}--- console\n{}\n---",
            self.name,
            console::tail(&self.log(), SHOWN),
            events.concat(),
            console::tail(&self.console(), SHOWN),
        );
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("name", &self.name)
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
