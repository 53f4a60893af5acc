//! The sockets at which guests' processes knock.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

pub use levy_protocol::run_dir::{Doors, kept_in};

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
    /// What the manager before kept is there and cannot be read: without it its guests would be lost.
    #[error(
        "cannot read {path}, where the manager before wrote down its guests; mend that and start again, or remove the file \
         to begin without them"
    )]
    Kept {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// No thread, or what it needs.
    #[error("the system does not let the manager serve its guests")]
    System(#[source] io::Error),
}

/// Listens at `path`; a socket at which no process answers is left over and replaced.
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
