//! A server under test: started with a scratch directory and a log, ended and removed with its user.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a server may take until it answers: several guests that start theirs at once on one emulated CPU take
/// minutes. One that has ended is not waited for.
const START: Duration = Duration::from_secs(600);

/// How long a server may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// A directory that is gone at the end.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new(name: &str) -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("levy-{name}.{}", std::process::id()));
        let wrong = |error| format!("cannot create {}: {error}", path.display());
        fs::create_dir_all(&path).map_err(wrong)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(wrong)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// A path inside.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A system user, for servers that refuse to run as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// The user called `name` of this system.
    pub(super) fn named(name: &str) -> Result<Self, String> {
        let users = fs::read_to_string("/etc/passwd").map_err(|error| format!("/etc/passwd: {error}"))?;
        Self::find(&users, name).ok_or_else(|| format!("this system has no user {name}"))
    }

    fn find(passwd: &str, name: &str) -> Option<Self> {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = line.split(':').skip(2);
        Some(Self {
            uid: numbers.next()?.parse().ok()?,
            gid: numbers.next()?.parse().ok()?,
        })
    }

    /// Makes a command run as this user.
    pub(super) fn become_by(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Gives a directory to this user.
    pub(super) fn own(self, path: &Path) -> Result<(), String> {
        chown(path, Some(self.uid), Some(self.gid))
            .map_err(|error| format!("chown {}: {error}", path.display()))
    }
}

/// A server process.
pub(super) struct Service {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

impl Service {
    /// Starts a server with its output in `scratch`.
    pub(super) fn start(
        name: &'static str,
        command: &mut Command,
        scratch: &Scratch,
    ) -> Result<Self, String> {
        let log = scratch.join(&format!("{name}.log"));
        let wrong = |error| format!("cannot write {}: {error}", log.display());
        let out = File::create(&log).map_err(wrong)?;
        let err = out.try_clone().map_err(wrong)?;
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let program = command.get_program().to_string_lossy();
        let child = child.map_err(|error| format!("cannot start {program}: {error}"))?;
        Ok(Self { child, name, log })
    }

    /// Waits until `answers` gives something; an end of the server or of patience is an error with its last words.
    pub(super) fn wait_for<T>(&mut self, answers: impl Fn() -> Option<T>) -> Result<T, String> {
        let until = Instant::now() + START;
        loop {
            if let Some(answer) = answers() {
                return Ok(answer);
            }
            self.alive()?;
            if Instant::now() > until {
                return Err(format!(
                    "{} did not answer in {} s: {}",
                    self.name,
                    START.as_secs(),
                    self.last_words()
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// An error if the server has ended.
    pub(super) fn alive(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("{} ended: {status}: {}", self.name, self.last_words())),
            Err(error) => Err(format!("{} is lost: {error}", self.name)),
        }
    }

    fn last_words(&self) -> String {
        last_lines(&fs::read_to_string(&self.log).unwrap_or_default())
    }
}

/// The end of a log, on one line.
pub(super) fn last_lines(log: &str) -> String {
    let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let until = Instant::now() + GRACE;
        while Instant::now() < until && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_their_whole_name() {
        let passwd = "post:x:1:2::/:/bin/sh\npostgres:x:100:101::/:/bin/sh\n";
        assert_eq!(User::find(passwd, "postgres"), Some(User { uid: 100, gid: 101 }));
        assert_eq!(User::find(passwd, "postgre"), None);
    }

    #[test]
    fn a_server_that_ends_is_told_with_its_last_words() {
        let scratch = Scratch::new("service-test").unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo no room >&2; exit 3"]);
        let mut service = Service::start("server", &mut command, &scratch).unwrap();
        let error = service.wait_for(|| None::<()>).unwrap_err();
        assert!(
            error.contains("exit status: 3") && error.contains("no room"),
            "{error}"
        );
    }
}
