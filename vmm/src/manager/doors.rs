//! The sockets at which guests' processes knock.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Where guests' processes find their manager: two sockets in its run directory, and beside them what it keeps there.
#[derive(Debug, Clone)]
pub struct Doors {
    /// For reports and orders.
    pub guests: PathBuf,
    /// For the pages that are shared.
    pub pages: PathBuf,
    /// What the next manager takes over.
    pub kept: PathBuf,
}

impl Doors {
    /// The sockets of the manager whose run directory is `dir`.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            guests: dir.join("guests.sock"),
            pages: dir.join("pages.sock"),
            kept: kept_in(dir),
        }
    }
}

/// The file of the run directory `dir` in which a manager leaves what the next one takes over.
pub fn kept_in(dir: &Path) -> PathBuf {
    dir.join("kept.json")
}

/// Why the manager could not open its door.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Another manager answers there.
    #[error("another manager is running at {0}; use it, stop it, or choose another --run-dir")]
    Running(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen at {path}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// No thread, or what it needs.
    #[error("the system does not let the manager serve its guests")]
    System(#[source] io::Error),
}

/// Listens at `path`; a socket that nobody answers at is left over and replaced.
pub(super) fn listen(path: &Path) -> Result<UnixListener, HostError> {
    let failed = |source| HostError::Listen {
        path: path.to_owned(),
        source,
    };
    if UnixStream::connect(path).is_ok() {
        return Err(HostError::Running(path.to_owned()));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    UnixListener::bind(path).map_err(failed)
}
