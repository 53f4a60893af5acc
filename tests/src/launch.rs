//! `levy run` as people type it: a launcher with a manager of its own, read through its JSON lines and its API.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use levy_launcher::api_client::Client;
use levy_launcher::{LaunchEvent, Summary};
use levy_protocol::api::GuestView;
use levy_protocol::control::{Client as Control, Request};
use levy_protocol::{GuestEvent, GuestState};

use crate::{Lab, PATIENCE, files_in};

/// `levy run` with its own manager. Interrupted and waited for when dropped.
#[derive(Debug)]
pub struct Launch {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    dir: tempfile::TempDir,
}

impl Launch {
    /// `levy run` of one guest of 256 MiB, and `args`. Whatever it writes it writes to [`Launch::dir`].
    pub fn start(lab: &Lab, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(lab.levy())
            .args(["run", "--json", "--manager", "own", "--memory", "size=256M"])
            .args(["--deadline", "10m"])
            .args(args)
            .env("XDG_RUNTIME_DIR", dir.path())
            .env("TMPDIR", dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, dir }
    }

    /// The launcher's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads until there is a line that `wanted` makes something of.
    pub fn until<T>(&mut self, what: &str, wanted: impl Fn(LaunchEvent) -> Option<T>) -> T {
        let mut lines = self.lines.by_ref().map_while(Result::ok);
        lines
            .find_map(|line| wanted(LaunchEvent::parse(&line)?))
            .unwrap_or_else(|| panic!("the launch ended before {what}"))
    }

    /// Waits until the guest is ready.
    pub fn ready(&mut self) {
        self.until("ready", |event| match event {
            LaunchEvent::Guest(GuestEvent::State { state, .. }) => (state == GuestState::Ready).then_some(()),
            _ => None,
        });
    }

    /// Waits for the summary, which comes last.
    pub fn summary(&mut self) -> Summary {
        self.until("the summary", |event| match event {
            LaunchEvent::Summary(summary) => Some(summary),
            _ => None,
        })
    }

    /// Where it keeps its own folder, and everything temporary.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What the manager says of its guests, by name: it lists them as they were admitted, and they start at once.
    pub fn guests(&self) -> Vec<GuestView> {
        // Whatever is temporary is in the same place, in no order.
        let folders = files_in(self.dir());
        let folder = folders.iter().find(|name| name.starts_with("levy-run-"));
        let folder = folder.unwrap_or_else(|| panic!("no manager's folder among {folders:?}"));
        let mut guests = Client::at(&self.dir().join(folder)).guests().unwrap();
        guests.sort_by(|a, b| a.name.cmp(&b.name));
        guests
    }

    /// What the manager says of its only guest.
    pub fn guest(&self) -> GuestView {
        self.guests().pop().expect("one guest")
    }

    /// Has `guest` restart.
    pub fn restart(&self, guest: &GuestView) {
        let control = guest.control.as_deref().unwrap();
        let mut control = Control::connect(Path::new(control), PATIENCE).unwrap();
        control.ask(&Request::Restart).unwrap();
    }

    /// Presses Ctrl-C.
    pub fn interrupt(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    }

    /// Waits for its end: the exit status.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        self.interrupt();
        let _ = self.child.wait();
    }
}
