//! Processes that are killed, stopped, and never left behind.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};

use crate::quota::Length;
use crate::refusal::Refusal;

/// Becomes another program, which ends with the process that started it, even while it is stopped.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Leash {
    /// The process that started this one
    #[arg(long)]
    parent: i32,
    /// What is refused to it
    #[arg(long, value_enum)]
    refuse: Vec<Refusal>,
    /// Program and arguments; `guest` and `host` are parts of this one
    #[arg(last = true, required = true)]
    argv: Vec<OsString>,
}

/// What this program itself can be.
#[derive(Parser)]
#[command(name = "chaos")]
struct OwnProgram {
    #[command(subcommand)]
    command: simulated::Command,
}

impl Leash {
    /// Never returns where it becomes another program.
    pub(crate) fn run(self) -> anyhow::Result<std::process::ExitCode> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have gone before that.
        anyhow::ensure!(
            getppid().map(Pid::as_raw_nonzero).map(i32::from) == Some(self.parent),
            "no parent waits for this process any more"
        );
        self.refuse.iter().try_for_each(|refusal| refusal.apply())?;
        if self.argv[0] == "guest" || self.argv[0] == "host" {
            let argv = [OsString::from("chaos")].into_iter().chain(self.argv);
            return Ok(OwnProgram::parse_from(argv).command.run());
        }
        let error = Command::new(&self.argv[0]).args(&self.argv[1..]).exec();
        Err(error).with_context(|| format!("cannot start {}", self.argv[0].display()))
    }
}

/// How a process is started.
#[derive(Debug, Default)]
pub(crate) struct Start {
    /// Program and arguments.
    pub(crate) argv: Vec<OsString>,
    /// What is refused to it.
    pub(crate) refuse: Vec<Refusal>,
    /// Seconds that its monotonic clock is ahead of other processes'.
    pub(crate) skew: Option<u64>,
    /// Where its stderr goes, at the end of the file.
    pub(crate) log: PathBuf,
}

/// A process on a leash. Killed and waited for when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    stopped: Option<(Instant, Length)>,
}

impl Process {
    /// Starts one; with its input and output where `talks`.
    pub(crate) fn start(start: &Start, talks: Talks) -> anyhow::Result<Self> {
        let log = File::options().append(true).create(true).open(&start.log)?;
        let pipe = || match talks {
            Talks::Yes => Stdio::piped(),
            Talks::No => Stdio::null(),
        };
        let own = std::env::current_exe()?;
        let mut command = match start.skew {
            None => Command::new(&own),
            Some(seconds) => {
                let mut command = Command::new("unshare");
                command.args(["--time", "--monotonic", &seconds.to_string()]);
                command.args(["--boottime", &seconds.to_string()]).arg(&own);
                command
            }
        };
        command.args(["leash", "--parent", &std::process::id().to_string()]);
        for refusal in &start.refuse {
            command.args(["--refuse", refusal.name()]);
        }
        command.arg("--").args(&start.argv);
        // Ctrl-C is for the harness, which ends its processes itself.
        command.process_group(0);
        let child = command.stdin(pipe()).stdout(pipe()).stderr(log).spawn();
        Ok(Self {
            child: child.context("cannot start a process")?,
            stopped: None,
        })
    }

    /// Its input and output, once.
    pub(crate) fn talk(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        Some((self.child.stdin.take()?, self.child.stdout.take()?))
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// Whether it is stopped, and to stay so for some time.
    pub(crate) fn is_stopped_for_long(&self) -> bool {
        matches!(self.stopped, Some((_, Length::Long)))
    }

    /// How long it has been stopped, if it is.
    pub(crate) fn stopped_for(&self) -> Option<Duration> {
        self.stopped.map(|(since, _)| since.elapsed())
    }

    pub(crate) fn stop(&mut self, length: Length) {
        if kill_process(self.pid(), Signal::STOP).is_ok() {
            self.stopped.get_or_insert_with(|| (Instant::now(), length));
        }
    }

    /// Lets it go on; how long it was stopped.
    pub(crate) fn go_on(&mut self) -> Option<Duration> {
        let (since, _) = self.stopped.take()?;
        let _ = kill_process(self.pid(), Signal::CONT);
        Some(since.elapsed())
    }

    /// Ends it as Ctrl-C does.
    pub(crate) fn interrupt(&mut self) {
        let _ = kill_process(self.pid(), Signal::INT);
    }

    /// How it ended by itself, if it did.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether a process is talked to by its input and output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Talks {
    Yes,
    No,
}

/// Whether a status is one of a process that broke, not of one that ended.
pub(crate) fn is_abort(status: ExitStatus) -> bool {
    status.signal().is_some() || status.code().is_none_or(|code| code > 1)
}

/// The last lines of a log.
pub(crate) fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
