//! One `levy vmm` process and the launcher's ways to it.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Note;
use levy_protocol::control::{Client, ClientError, Request};
use levy_protocol::not_started;

/// How long a VMM may take to answer a request. In an emulated host with eight guests that is seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running VMM.
#[derive(Debug)]
pub struct VmmProcess {
    child: Child,
    control: PathBuf,
    agent: PathBuf,
    log: PathBuf,
}

impl VmmProcess {
    /// Starts guest number `guest`, called `name`, with its sockets and its console log in `dir`.
    pub fn start(
        (guest, name): (usize, &str),
        args: &[OsString],
        dir: &Path,
        notes: &Sender<Note>,
    ) -> io::Result<Self> {
        let file = |suffix: &str| dir.join(format!("{guest}.{suffix}"));
        let (control, agent, log) = (file("control"), file("agent"), file("log"));
        let mut serial = OsString::from("file=");
        serial.push(&log);
        let mut child = Command::new(std::env::current_exe()?)
            .arg("vmm")
            .args(["--name", name, "--events", "json", "--kvm-checked"])
            .args(["--parent", &std::process::id().to_string()])
            .arg("--control")
            .arg(&control)
            .arg("--agent")
            .arg(&agent)
            .arg("--serial")
            .arg(serial)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Ctrl-C is the launcher's to pass on: guests get the chance to write their disks back.
            .process_group(0)
            .spawn()
            .map_err(not_started)?;
        let stdout = child.stdout.take().expect("standard output was piped");
        let mut started = Self {
            child,
            control,
            agent,
            log,
        };
        let notes = notes.clone();
        let listening = thread::Builder::new()
            .name(format!("vmm {guest}"))
            .stack_size(256 << 10)
            .spawn(move || listen(stdout, guest, &notes));
        match listening {
            Ok(_) => Ok(started),
            Err(error) => {
                // A guest that is not listened to would never be known to have ended.
                started.kill();
                Err(not_started(error))
            }
        }
    }

    /// The agent's socket.
    pub fn agent(&self) -> &Path {
        &self.agent
    }

    /// Asks the VMM.
    pub fn ask(&self, request: &Request) -> Result<Value, ClientError> {
        Client::connect(&self.control, PATIENCE)?.ask(request)
    }

    /// Waits for the process, which is about to end, and ends it after `most`.
    pub fn wait(&mut self, most: Duration) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + most;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                self.child.kill()?;
                return self.child.wait();
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks the process to end its guest and itself, as Ctrl-C does.
    pub(crate) fn interrupt(&self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Removes the sockets of a process that has ended: confined, it could not.
    pub(super) fn clear_away(&self) {
        for socket in [&self.control, &self.agent] {
            let _ = std::fs::remove_file(socket);
        }
    }

    /// The last lines of the guest's console.
    pub fn console_tail(&self, lines: usize) -> Vec<String> {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<_> = text
            .lines()
            .map(|l| l.trim_end().to_owned())
            .filter(|l| !l.is_empty())
            .collect();
        all[all.len().saturating_sub(lines)..].to_vec()
    }
}

/// Passes on what the VMM reports, and its end.
fn listen(stdout: ChildStdout, guest: usize, notes: &Sender<Note>) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if let Ok(value) = serde_json::from_str::<Value>(&line) {
            let _ = notes.send(Note::Vmm(guest, value));
        }
    }
    let _ = notes.send(Note::Closed(guest));
}
