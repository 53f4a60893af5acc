//! One guest, from the start of its process to its end: what it reports, its agent, its control socket.
//!
//! A [`Session`] owns the process. What the process and the agent say comes as [`Note`]s from threads of the session's
//! own, to a closure that the owner gives it: an owner of many guests puts them into one channel. An owner of one guest
//! that has nothing to do but wait takes [`OneGuest`], which is a session with its channel.
//!
//! # Invariants
//! 1. A session that is dropped has killed its process and waited for it.
//! 2. The agent is connected to once the process has said that the guest runs: its socket is there then.

mod agent;
mod console_log;
mod files;
mod lines;
mod note;
mod one_guest;

use std::ffi::OsString;
use std::io::{self, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use levy_agent::{Action, Command as AgentCommand};
use levy_protocol::control::{Client, ClientError, Request};
use levy_protocol::{GuestEvent, GuestState, not_started};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use self::agent::Agent;
use self::lines::Taken;
use self::note::Listener;

pub use self::files::SessionFiles;
pub use self::note::Note;
pub use self::one_guest::{OneGuest, WaitError};

/// How long a guest's process may take to answer a request. In an emulated host with eight guests that is seconds.
pub(crate) const ANSWER_PATIENCE: Duration = Duration::from_secs(20);
/// How often a wait looks whether the process has ended.
const LOOK: Duration = Duration::from_millis(10);

/// A guest whose process this program started.
pub struct Session {
    child: Child,
    /// It was waited for: its number is free for another.
    reaped: bool,
    files: SessionFiles,
    listener: Listener,
    agent: Option<Agent>,
    phase: Phase,
    /// How the guest ended, in its process's words.
    message: Option<String>,
    /// Commands that the agent was sent.
    commands: u64,
}

/// How far the guest's process is, as far as its report says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    Running,
    Over,
}

impl Session {
    /// Starts `levy vmm` with `command`, which says all but where its report, its console and its sockets are. What is
    /// heard goes to `listener`.
    ///
    /// # Errors
    /// When the host refuses a process or a thread; nothing is left running then.
    pub fn start(
        mut command: Command,
        files: SessionFiles,
        listener: impl Fn(Note) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        command.args(["--events", "json"]);
        files.add_to(&mut command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(not_started)?;
        let stdout = child.stdout.take().expect("standard output was piped");
        let started = Self {
            child,
            reaped: false,
            files,
            listener: Arc::new(listener),
            agent: None,
            phase: Phase::Starting,
            message: None,
            commands: 0,
        };
        let listener = Listener::clone(&started.listener);
        // Without this thread the end of the guest would never be known, so its process goes where that fails.
        thread::Builder::new()
            .name("vmm".into())
            .stack_size(256 << 10)
            .spawn(move || listen(stdout, &listener))
            .map_err(not_started)?;
        Ok(started)
    }

    /// Starts `levy vmm` of this very program for a guest called `name`, made of `args`. It ends when this process
    /// does, but not by the Ctrl-C that this one gets: that is this one's to pass on, so that guests write their disks
    /// back. Its sockets are this one's to remove ([`Session::clear_away`]).
    ///
    /// # Errors
    /// As [`Session::start`].
    pub fn launch(
        name: &str,
        args: &[OsString],
        files: SessionFiles,
        listener: impl Fn(Note) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["vmm", "--name", name, "--kvm-checked"])
            .args(["--parent", &std::process::id().to_string()])
            .args(args)
            .process_group(0);
        Self::start(command, files, listener)
    }

    /// The guest's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it is reached.
    pub fn files(&self) -> &SessionFiles {
        &self.files
    }

    /// Takes note of what the process reported. To be called with every event that comes as [`Note::Vmm`].
    pub fn heard(&mut self, event: &GuestEvent) {
        match event {
            GuestEvent::State {
                state: GuestState::Running,
                ..
            } => self.phase = Phase::Running,
            GuestEvent::Ended { message, .. } | GuestEvent::Failed { message, .. } => {
                self.phase = Phase::Over;
                self.message = Some(message.clone());
            }
            GuestEvent::State { .. } | GuestEvent::Unknown(_) => {}
        }
    }

    /// Connects to the agent of a guest that runs, unless that is done.
    ///
    /// # Errors
    /// When the agent's socket or this process does not allow it; it can be tried again.
    pub fn connect(&mut self) -> io::Result<()> {
        if self.phase == Phase::Running && self.agent.is_none() {
            self.agent = Some(Agent::connect(&self.files.agent, &self.listener)?);
        }
        Ok(())
    }

    /// Whether the agent is connected to.
    pub fn is_connected(&self) -> bool {
        self.agent.is_some()
    }

    /// Sends the agent a command; its number, which the answers carry.
    ///
    /// # Errors
    /// When the agent is not connected to, or gone.
    pub fn command(&mut self, action: Action) -> io::Result<u64> {
        let agent = self.agent.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        self.commands += 1;
        let id = self.commands;
        agent.send(&AgentCommand { id, action })?;
        Ok(id)
    }

    /// Asks the process, not the guest.
    ///
    /// # Errors
    /// When it is gone, takes too long or refuses.
    pub fn ask(&self, request: &Request) -> Result<Value, ClientError> {
        self.ask_within(ANSWER_PATIENCE, request)
    }

    /// As [`Session::ask`], with other patience.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub fn ask_within(&self, patience: Duration, request: &Request) -> Result<Value, ClientError> {
        Client::connect(&self.files.control, patience)?.ask(request)
    }

    /// As [`Session::ask`], on a thread of its own: `answered` hears what came of it, and this thread goes on.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub(crate) fn ask_aside(
        &self,
        request: Request,
        answered: impl FnOnce(Result<Value, ClientError>) + Send + 'static,
    ) -> io::Result<()> {
        let control = self.files.control.clone();
        let ask = move || Client::connect(&control, ANSWER_PATIENCE)?.ask(&request);
        thread::Builder::new()
            .name("asking".into())
            .stack_size(256 << 10)
            .spawn(move || answered(ask()))
            .map(drop)
            .map_err(not_started)
    }

    /// Sends the process a signal; those of the Ctrl-C kind have it end its guest and itself.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.reaped {
            // Its number may be another process's by now.
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Waits for the process, which is about to end, and kills it after `most`.
    ///
    /// # Errors
    /// When the host does not let it be waited for.
    pub fn wait(&mut self, most: Duration) -> io::Result<ExitStatus> {
        self.phase = Phase::Over;
        let deadline = Instant::now() + most;
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.reaped = true;
                return Ok(status);
            }
            if Instant::now() >= deadline {
                self.child.kill()?;
                let status = self.child.wait();
                self.reaped = status.is_ok();
                return status;
            }
            thread::sleep(LOOK);
        }
    }

    /// How the guest ended, in a sentence: its process's own, or what `status`, from [`Session::wait`], says of one that
    /// went without a word.
    pub fn how_it_ended(&self, status: &io::Result<ExitStatus>) -> String {
        match (&self.message, status) {
            (Some(message), _) => message.clone(),
            (None, Ok(status)) if status.signal() == Some(libc::SIGSYS) => {
                "its VMM made a system call that its confinement forbids; its last line on standard error names it"
                    .to_owned()
            }
            (None, Ok(status)) if status.signal() == Some(libc::SIGKILL) => {
                "its VMM was killed by SIGKILL, as a second Ctrl-C and `levy stop --force` do, and the kernel where memory has run \
                 out"
                    .to_owned()
            }
            (None, Ok(status)) => format!("its VMM ended without a word: {status}"),
            (None, Err(error)) => format!("its VMM cannot be waited for: {error}"),
        }
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        self.phase = Phase::Over;
        let _ = self.child.kill();
        self.reaped = self.child.wait().is_ok();
    }

    /// Removes the sockets of a process that has ended: one that was started by [`Session::launch`] is confined and
    /// could not.
    pub fn clear_away(&self) {
        self.files.remove_sockets();
    }

    /// The guest's console so far, of which its process keeps the newest MiB.
    pub fn console(&self) -> String {
        console_log::newest(&self.files.console)
    }

    /// The last lines of the guest's console that say something; of long ones the begin.
    pub fn console_tail(&self, lines: usize) -> Vec<String> {
        console_log::last_lines(&self.files.console, lines)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Passes on what the process reports, and its end.
fn listen(stdout: ChildStdout, listener: &Listener) {
    lines::listen(BufReader::new(stdout), |heard| match heard {
        Taken::Missed(lines) => listener(Note::Missed(lines)),
        Taken::Line(line) => {
            if let Some(event) = GuestEvent::parse(&line) {
                listener(Note::Vmm(event));
            }
        }
    });
    listener(Note::Closed);
}
