//! A manager's process, from the outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use levy_launcher::api_client::Client;
use levy_protocol::api::HostView;
use levy_protocol::process_memory::Held;
use tempfile::TempDir;

use crate::relay::Relay;
use crate::until;

/// A manager's process in a folder of its own. Killed when dropped.
#[derive(Debug)]
pub struct Manager {
    program: PathBuf,
    args: Vec<String>,
    child: Child,
    relay: Option<Relay>,
    dir: TempDir,
}

/// What a process has of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Open files and sockets.
    pub fds: usize,
    /// Threads.
    pub threads: usize,
    /// Anonymous memory, KiB.
    pub anonymous_kib: u64,
    /// Files in its run directory.
    pub files: usize,
}

impl Manager {
    /// Starts one with `program` that manages `budget_mib` MiB, and waits until it answers.
    pub fn start(program: &Path, budget_mib: u64) -> Self {
        Self::start_with(program, budget_mib, &[])
    }

    /// As [`Manager::start`], with further arguments of `levy host`.
    pub fn start_with(program: &Path, budget_mib: u64, args: &[&str]) -> Self {
        let budget = format!("{budget_mib}M");
        Self::start_as(program, &[&["--budget", budget.as_str()], args].concat())
    }

    /// Starts one with the arguments `args` of `levy host`, its run directory left out.
    pub fn start_as(program: &Path, args: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("levy-simulated-")
            .tempdir()
            .expect("a temporary directory");
        let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
        let manager = Self {
            program: program.to_owned(),
            child: spawn(program, dir.path(), &args),
            relay: None,
            args,
            dir,
        };
        manager.answers();
        manager
    }

    /// Its run directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Has another process ask for this one: of a test that speaks as a guest itself, which the API answers nothing. Its
    /// program is one of simulated processes.
    pub fn asked_by_another(mut self) -> Self {
        self.relay = Some(Relay::start(&self.program, self.dir()));
        self.answers();
        self
    }

    /// Its API.
    pub fn client(&self) -> Client {
        match &self.relay {
            Some(relay) => relay.client(),
            None => Client::at(self.dir()),
        }
    }

    /// What it says of itself.
    pub fn view(&self) -> HostView {
        self.client().host().expect("the manager answers")
    }

    /// Guests that are connected.
    pub fn connected(&self) -> usize {
        let guests = self.client().guests().unwrap_or_default();
        guests.iter().filter(|guest| guest.connected).count()
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it as Ctrl-C does, and waits.
    pub fn interrupt(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it is there");
        assert!(self.child.wait().expect("our child").success());
    }

    /// Starts another one in the same place.
    pub fn start_again(&mut self) {
        self.kill();
        self.child = spawn(&self.program, self.dir.path(), &self.args);
        self.answers();
    }

    /// Starts another one in the same place, with other arguments.
    pub fn start_again_as(&mut self, args: &[&str]) {
        self.args = args.iter().map(|&arg| arg.to_owned()).collect();
        self.start_again();
    }

    /// Has its process stand still, or go on.
    pub fn still(&self, still: bool) {
        use rustix::process::{Pid, Signal, kill_process};
        let signal = if still { Signal::STOP } else { Signal::CONT };
        kill_process(Pid::from_child(&self.child), signal).expect("it is there");
    }

    /// What its process has.
    pub fn footprint(&self) -> Footprint {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let count = |path: &Path| fs::read_dir(path).expect("it is there").count();
        let held = Held::of(self.child.id()).expect("it is there");
        Footprint {
            fds: count(&process.join("fd")),
            threads: count(&process.join("task")),
            anonymous_kib: held.anonymous >> 10,
            files: count(self.dir.path()),
        }
    }

    fn answers(&self) {
        // The process is the one that was just started, not one before it.
        until("the manager's answer", || {
            self.client().host().is_ok_and(|view| view.pid == self.child.id())
        });
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(program: &Path, dir: &Path, args: &[String]) -> Child {
    Command::new(program)
        .arg("host")
        .args(args)
        .arg("--run-dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts")
}
