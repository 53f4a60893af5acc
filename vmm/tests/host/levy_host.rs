//! `levy host` as a process of its own: what it says, and what becomes of it.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use levy_protocol::link::{FromManager, FromVmm, Hello, Line, Lines, Sharing};
use levy_protocol::run_dir::Sockets;

use crate::harness::{PATIENCE, hello, levy_command, until};

/// The process; killed when this is dropped.
pub(crate) struct LevyHost {
    pub(crate) child: Child,
    pub(crate) run_dir: PathBuf,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Drop for LevyHost {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl LevyHost {
    /// Starts one, and waits until guests can connect.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (run_dir, log) = (dir.path().join("levy"), dir.path().join("log"));
        let mut command = levy_command(dir.path());
        command.args(["host", "--budget", "300M", "--cgroup", "off"]);
        command.stderr(File::create(&log).unwrap());
        let host = Self {
            child: command.spawn().unwrap(),
            run_dir,
            log,
            _dir: dir,
        };
        host.until_said("they find me at");
        host
    }

    /// All that it has said.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until it has said `words`.
    pub(crate) fn until_said(&self, words: &str) {
        until(words, || {
            // Before the other look: what it says last is there when it has ended.
            let ended = self.ended();
            let said = self.said();
            assert!(said.contains(words) || !ended, "{words:?} is not in {said}");
            said.contains(words)
        });
    }

    fn ended(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_none_or(|(_, state)| state.starts_with('Z'))
    }

    /// Waits for its end.
    pub(crate) fn status(&mut self) -> ExitStatus {
        until("the manager's end", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap()
    }

    /// Says who `hello` is, and hears the answer.
    pub(crate) fn introduce(&self, hello: Hello) -> (UnixStream, FromManager) {
        introduce(&self.run_dir, hello)
    }
}

/// The same to the manager whose run directory is `dir`.
pub(crate) fn introduce(dir: &Path, hello: Hello) -> (UnixStream, FromManager) {
    let stream = UnixStream::connect(Sockets::in_dir(dir).guests).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Lines::send(&mut &stream, &FromVmm::Hello(hello)).unwrap();
    match Lines::default().next(&mut &stream) {
        Ok(Line::Message(answer)) => (stream, answer),
        other => panic!("{other:?}"),
    }
}

/// `levy host` with `args`, which ends by itself.
fn ends(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = levy_command(dir.path());
    command.arg("host").args(args).args(["--cgroup", "off"]);
    command.stdout(Stdio::null()).output().unwrap()
}

#[test]
fn a_budget_that_no_machine_has_is_refused_with_its_bounds() {
    for budget in ["0", "4096", "99999T"] {
        let output = ends(&["--budget", budget]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("out of bounds: it goes from 1 MiB to") && said.contains("of this machine"),
            "{said}"
        );
    }
}

#[test]
fn a_swap_folder_that_is_a_file_is_refused() {
    let output = ends(&["--swap", "/dev/null"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("cannot use /dev/null for swap") && said.contains("Not a directory"),
        "{said}"
    );
}

/// What `levy host` says about a budget that it refuses, where a stack may have 64 KiB by the limits that `ulimit` sets.
fn said_with_a_small_stack(ulimit: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let levy = levy_command(dir.path());
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{ulimit} 64; exec \"$@\""), "sh"]);
    shell.arg(levy.get_program());
    shell.args(["host", "--budget", "0", "--cgroup", "off"]);
    let output = shell.env("XDG_RUNTIME_DIR", dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

#[test]
fn a_stack_that_is_too_small_is_raised_or_said() {
    let raised = "out of bounds";
    let said = said_with_a_small_stack("ulimit -S -s");
    assert!(said.contains(raised), "{said}");
    // Only a process with CAP_SYS_RESOURCE may raise the other limit.
    let needs = "may have 64 KiB of stack and needs 1024; raise that with `ulimit -s`";
    let said = said_with_a_small_stack("ulimit -s");
    assert!(said.contains(raised) || said.contains(needs), "{said}");
}

#[test]
fn the_log_calls_guests_by_their_names() {
    let host = LevyHost::start();
    let (link, _) = host.introduce(hello("web", 16));
    host.until_said("\"web\" is here");
    // Not a word of the socket for pages.
    let mut pages = UnixStream::connect(Sockets::in_dir(&host.run_dir).pages).unwrap();
    pages.write_all(&[0xff; 64]).unwrap();
    host.until_said("\"web\" shares no more pages until it connects again");
    drop(link);
    host.until_said("\"web\" is away");
    let said = host.said();
    assert!(!said.contains("guest 0"), "{said}");
}

#[test]
fn the_same_trouble_with_a_guests_pages_is_said_once() {
    let host = LevyHost::start();
    let stranger = || {
        let mut pages = UnixStream::connect(Sockets::in_dir(&host.run_dir).pages).unwrap();
        // Until it is turned away.
        let _ = std::io::Read::read(&mut pages, &mut [0]);
    };
    (0..5).for_each(|_| stranger());
    // This is said after all of that.
    let _kept = host.introduce(hello("web", 16));
    host.until_said("\"web\" is here");
    let said = host.said();
    assert_eq!(
        said.matches("wants pages; it is turned away").count(),
        1,
        "{said}"
    );
}

#[test]
fn a_guest_that_cannot_be_kept_to_the_budget_is_refused_with_the_reason() {
    let host = LevyHost::start();
    // As a guest of which the kernel merges the pages: all of it is its minimum.
    let unmanaged = |name: &str, mib: u64| Hello {
        sharing: Sharing::Off,
        ..hello(name, mib).with_min(mib << 20)
    };
    let refusal = |hello: Hello| match host.introduce(hello).1 {
        FromManager::Refused { reason } => reason,
        other => panic!("{other:?}"),
    };
    let reason = refusal(unmanaged("large", 400));
    assert!(
        reason.starts_with("large does not fit:") && reason.contains("would fit"),
        "{reason}"
    );
    let (_kept, answer) = host.introduce(unmanaged("small", 100));
    assert!(matches!(answer, FromManager::Welcome(_)), "{answer:?}");
    host.until_said("a guest was refused: large does not fit:");
}

#[test]
fn a_run_directory_that_other_users_may_change_is_refused_and_what_to_do_is_said() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    for mode in [0o770, 0o777] {
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let output = ends(&["--budget", "300M", "--run-dir", dir.path().to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("chmod go-w"), "{said}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn sockets_that_were_removed_are_there_again_and_guests_stay() {
    let host = LevyHost::start();
    let (link, _) = host.introduce(hello("web", 16));
    let sockets = Sockets::in_dir(&host.run_dir);
    let api = levy_protocol::run_dir::api_socket(&host.run_dir);
    for path in [&sockets.guests, &sockets.pages, &api] {
        std::fs::remove_file(path).unwrap();
        host.until_said(&format!("{} was removed; it is there again", path.display()));
        UnixStream::connect(path).unwrap();
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&api).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // New guests are heard at the new sockets, and the old one is still there.
    match host.introduce(hello("late", 16)).1 {
        FromManager::Refused { reason } => {
            assert!(reason.contains("runs the guest \"web\" already"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!host.said().contains("is away"), "{}", host.said());
    let mut pages = UnixStream::connect(&sockets.pages).unwrap();
    pages.write_all(&[0xff; 64]).unwrap();
    host.until_said("\"web\" shares no more pages");
    drop(link);
}

#[test]
fn a_manager_without_its_run_directory_ends_and_says_so() {
    for replaced in [false, true] {
        let mut host = LevyHost::start();
        let (link, _) = host.introduce(hello("web", 16));
        let away = host.run_dir.with_extension("away");
        std::fs::rename(&host.run_dir, &away).unwrap();
        if replaced {
            std::fs::create_dir(&host.run_dir).unwrap();
        }
        assert_eq!(host.status().code(), Some(1));
        let said = host.said();
        assert_eq!(said.matches("was removed or replaced").count(), 1, "{said}");
        assert!(said.contains("start another `levy host`"), "{said}");
        // Nothing of it is in a place that is another manager's, and its guests see it go.
        assert!(!replaced || std::fs::read_dir(&host.run_dir).unwrap().count() == 0);
        let mut lines = Lines::default();
        while !matches!(lines.next::<FromManager>(&mut &link), Ok(Line::End)) {}
    }
}

#[test]
fn a_manager_whose_place_is_taken_leaves_it_to_the_other() {
    let mut host = LevyHost::start();
    let sockets = Sockets::in_dir(&host.run_dir);
    // In one step: it never sees that there is none.
    let other = sockets.guests.with_extension("other");
    let listener = std::os::unix::net::UnixListener::bind(&other).unwrap();
    std::fs::rename(&other, &sockets.guests).unwrap();
    assert_eq!(host.status().code(), Some(1));
    let said = host.said();
    assert!(said.contains("another manager has taken"), "{said}");
    UnixStream::connect(&sockets.guests).unwrap();
    drop(listener);
}
