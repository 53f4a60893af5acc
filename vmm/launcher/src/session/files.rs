//! The files by which a guest's process is reached.

use std::ffi::OsString;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Sockets and console of one guest's process.
#[derive(Clone, Debug)]
pub struct SessionFiles {
    /// Its control socket.
    pub control: PathBuf,
    /// Its agent's socket.
    pub agent: PathBuf,
    /// What its guest writes to the console.
    pub console: PathBuf,
}

impl SessionFiles {
    /// Those of guest number `number` of a launch that has the folder `dir`.
    pub fn numbered(dir: &Path, number: usize) -> Self {
        let file = |suffix: &str| dir.join(format!("{number}.{suffix}"));
        Self {
            control: file("control"),
            agent: file("agent"),
            console: file("log"),
        }
    }

    /// Tells `levy vmm` of them.
    pub(super) fn add_to(&self, command: &mut Command) {
        let mut serial = OsString::from("file=");
        serial.push(&self.console);
        command.arg("--control").arg(&self.control);
        command.arg("--agent").arg(&self.agent);
        command.arg("--serial").arg(serial);
    }

    /// Removes the sockets of a process that has ended, and no file of another kind.
    pub(super) fn remove_sockets(&self) {
        for path in [&self.control, &self.agent] {
            if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn nothing_but_sockets_is_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        let files = SessionFiles::numbered(dir.path(), 0);
        drop(UnixListener::bind(&files.control).unwrap());
        std::fs::write(&files.agent, "precious").unwrap();
        files.remove_sockets();
        assert!(!files.control.exists());
        assert_eq!(std::fs::read_to_string(&files.agent).unwrap(), "precious");
    }
}
