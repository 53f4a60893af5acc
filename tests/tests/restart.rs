//! Guests that restart under a launcher: another process, the same name, the same disk.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use levy::api::client::Client;
use levy::api::types::GuestView;
use levy::control::{Client as Control, Request};
use levy_tests::Lab;
use serde_json::Value;

/// `levy run` with its own manager. Ended when dropped.
struct Launch {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    dir: tempfile::TempDir,
}

impl Launch {
    fn start(lab: &Lab, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(lab.levy())
            .args(["run", "--json", "--manager", "own", "--memory", "size=256M"])
            .args(args)
            .env("XDG_RUNTIME_DIR", dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, dir }
    }

    /// Reads until a line is as `wanted`.
    fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        for line in self.lines.by_ref().map_while(Result::ok) {
            let value: Value = serde_json::from_str(&line).unwrap_or_default();
            if wanted(&value) {
                return value;
            }
        }
        panic!("the launch ended before {what}");
    }

    fn ready(&mut self) {
        self.until("ready", |line| line["state"] == "ready");
    }

    fn guest(&self) -> GuestView {
        let folder = std::fs::read_dir(self.dir.path()).unwrap().next().unwrap();
        let client = Client::at(&folder.unwrap().path());
        client.guests().unwrap().pop().expect("one guest")
    }

    fn restart(&self, guest: &GuestView) {
        let control = guest.control.as_deref().unwrap();
        let mut control = Control::connect(Path::new(control), Duration::from_secs(60)).unwrap();
        control.ask(&Request::Restart).unwrap();
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let _ = self.child.wait();
    }
}

#[test]
fn a_guest_that_restarts_is_another_process_under_the_same_name() {
    let Some(lab) = Lab::or_skip() else { return };
    let mut launch = Launch::start(&lab, &["--no-disk", "--name", "again"]);
    launch.ready();
    let before = launch.guest();
    launch.restart(&before);
    let restart = launch.until("a restart", |line| line["event"] == "restart");
    assert_eq!(
        (&restart["guest"], &restart["restarts"]),
        (&"again".into(), &1.into())
    );
    launch.ready();
    let after = launch.guest();
    assert_eq!((before.name.as_str(), after.name.as_str()), ("again", "again"));
    assert_ne!(before.pid, after.pid);
    assert!(
        !Path::new(&format!("/proc/{}", before.pid)).exists(),
        "the old process is gone"
    );
    // Nothing that the old process had is left: neither in a balloon, nor compressed, nor in a swap file.
    let memory = after.memory;
    assert_eq!(
        (
            memory.ballooned_bytes,
            memory.compressed_bytes,
            memory.swapped_bytes
        ),
        (0, 0, 0)
    );
}

#[test]
fn a_restart_can_be_an_end() {
    let Some(lab) = Lab::or_skip() else { return };
    let mut launch = Launch::start(&lab, &["--no-disk", "--on-reboot", "exit"]);
    launch.ready();
    let guest = launch.guest();
    launch.restart(&guest);
    let summary = launch.until("the summary", |line| line["event"] == "summary");
    assert_eq!(summary["guests"][0]["outcome"], "rebooted", "{summary}");
    assert_eq!(launch.child.wait().unwrap().code(), Some(3));
}
