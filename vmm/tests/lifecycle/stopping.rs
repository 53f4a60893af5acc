//! Guests that do not want to end.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use levy_launcher::api_client::Client;
use levy_protocol::api::Phase;
use levy_protocol::control::Request;
use rustix::process::Signal;

use crate::threads::Process;
use crate::{Vmm, folder_where_guests_run, kernel};

#[test]
fn a_guest_that_panics_without_end_has_ended_nonetheless() {
    let Some(vmm) = Vmm::start_with(kernel::PANICKING, &[]) else {
        return;
    };
    assert_eq!(vmm.end(), Some(4));
}

#[test]
fn a_guest_that_panics_without_end_is_stopped_when_it_is_asked_to() {
    let Some(vmm) = Vmm::start_with(kernel::PANICKING, &[]) else {
        return;
    };
    vmm.ask(&Request::Stop { grace_ms: 0 });
    assert_eq!(vmm.end(), Some(0));
}

#[test]
fn two_signals_end_a_guest_that_panics_without_end() {
    let Some(vmm) = Vmm::start_with(kernel::PANICKING, &[]) else {
        return;
    };
    (0..2).for_each(|_| vmm.signal(Signal::TERM));
    // Both may be one where the process has not looked in between: then the guest counts as panicked.
    assert!(matches!(vmm.end(), Some(0 | 4)));
}

/// A manager of its own, with guests that switch nothing off.
struct Managed {
    dir: tempfile::TempDir,
    _host: Process,
    client: Client,
}

impl Managed {
    fn start() -> Option<Self> {
        let dir = folder_where_guests_run()?;
        kernel::write(dir.path(), kernel::IDLE);
        let run_dir = dir.path().join("levy");
        let mut host = levy(dir.path());
        host.args(["host", "--budget", "300M", "--cgroup", "off", "--run-dir"])
            .arg(&run_dir);
        let mut host = Process(host.spawn().unwrap());
        let client = Client::at(&run_dir);
        host.settles(|| client.host().is_ok()).unwrap();
        Some(Self {
            dir,
            _host: host,
            client,
        })
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("levy")
    }

    fn guest(&self) -> Process {
        let mut guest = levy(self.dir.path());
        guest.args([
            "vmm",
            "--name",
            "g",
            "--kernel",
            "bzImage",
            "--memory",
            "64M",
            "--kvm-checked",
        ]);
        guest.args(["--serial", "null", "--manager"]).arg(self.run_dir());
        let mut guest = Process(guest.spawn().unwrap());
        let is_there = || self.client.guest("g").is_ok_and(|guest| guest.connected);
        guest.settles(is_there).unwrap();
        guest
    }

    fn stop(&self, more: &[&str]) -> Output {
        self.tell(&[&["stop", "g"], more].concat())
    }

    fn tell(&self, words: &[&str]) -> Output {
        let mut tell = levy(self.dir.path());
        tell.args(words).arg("--run-dir").arg(self.run_dir());
        tell.stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .unwrap()
    }
}

fn levy(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_levy"));
    command
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

#[test]
fn a_guest_is_killed_by_force_and_asked_nothing() {
    let Some(managed) = Managed::start() else { return };
    let mut guest = managed.guest();
    // It does nothing that it is asked.
    rustix::process::kill_process(rustix::process::Pid::from_child(&guest.0), Signal::STOP).unwrap();
    let stopped = managed.stop(&["--force"]);
    assert!(stopped.status.success(), "{stopped:?}");
    assert_eq!(guest.settles(|| false).unwrap_err().signal(), Some(libc::SIGKILL));
    assert!(managed.client.guests().unwrap().is_empty());
    let again = managed.stop(&["--force"]);
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(
        again.status.code() == Some(1) && said.contains("no guest is called"),
        "{said}"
    );
}

#[test]
fn a_guest_has_the_grace_that_its_owner_gives_it() {
    let Some(managed) = Managed::start() else { return };
    let mut guest = managed.guest();
    let asked = managed.stop(&["--grace", "1h", "--wait", "0s"]);
    assert!(asked.status.success(), "{asked:?}");
    assert_eq!(managed.client.guest("g").unwrap().phase, Phase::Stopping);
    // Longer than any grace that a process has by itself would be too long for a test: the next order tells.
    let ended = managed.stop(&["--grace", "0s"]);
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(guest.settles(|| false).unwrap_err().code(), Some(0));
    let both = managed.stop(&["--grace", "1s", "--force"]);
    assert_eq!(both.status.code(), Some(2));
}

#[test]
fn those_who_were_told_are_named_and_those_who_were_not_too() {
    let Some(managed) = Managed::start() else { return };
    let mut guest = managed.guest();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let paused = managed.tell(&["pause", "absent", "g", "g"]);
    assert_eq!(paused.status.code(), Some(1));
    assert_eq!(said(&paused.stdout), "paused g\n");
    assert!(
        said(&paused.stderr).contains("no guest is called \"absent\""),
        "{paused:?}"
    );
    let told = managed.tell(&["stop", "g", "g", "--wait", "0s", "--json"]);
    assert!(told.status.success(), "{told:?}");
    assert_eq!(said(&told.stdout), "{\"told\":[\"g\"]}\n");
    guest.settles(|| false).unwrap_err();
    // A guest that dies on the way is no failure: the manager lists it until it has noticed.
    let mut guest = managed.guest();
    rustix::process::kill_process(rustix::process::Pid::from_child(&guest.0), Signal::KILL).unwrap();
    let gone = managed.stop(&["--force"]);
    let unlisted = said(&gone.stderr).contains("no guest is called");
    assert!(gone.status.success() || unlisted, "{gone:?}");
    assert_eq!(guest.settles(|| false).unwrap_err().signal(), Some(libc::SIGKILL));
}
