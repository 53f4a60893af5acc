//! The files by which a guest's process is reached.

use std::ffi::OsString;
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

    /// Removes the sockets of a process that has ended.
    pub(super) fn remove_sockets(&self) {
        for socket in [&self.control, &self.agent] {
            let _ = std::fs::remove_file(socket);
        }
    }
}
