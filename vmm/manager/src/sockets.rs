//! The sockets at which guests' processes connect.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use levy_protocol::socket::{SocketError, SocketFile};

pub use levy_protocol::run_dir::{Sockets, kept_in};

/// Why the manager could not open its sockets.
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
    /// Something else has the socket's name.
    #[error(transparent)]
    Socket(SocketError),
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

/// How long a manager that was killed may take to end before it counts as running.
const ENDING: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(600),
];

/// Listens at `path`; a socket at which no process answers is left over and replaced, and nothing else is.
pub(super) fn listen(path: &Path) -> Result<(SocketFile, UnixListener), HostError> {
    let mut pauses = ENDING.into_iter();
    loop {
        match SocketFile::bind(path) {
            Ok(opened) => return Ok(opened),
            Err(SocketError::InUse { path }) => match pauses.next() {
                Some(pause) => std::thread::sleep(pause),
                None => return Err(HostError::Running(path)),
            },
            Err(SocketError::Host { path, source }) => return Err(HostError::Listen { path, source }),
            Err(error) => return Err(HostError::Socket(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_with_a_sockets_name_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "precious").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [&file, &link] {
            assert!(matches!(listen(path), Err(HostError::Socket(_))), "{path:?}");
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
        assert!(link.is_symlink());
    }

    #[test]
    fn a_manager_that_is_about_to_end_is_waited_for_and_one_that_runs_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let before = UnixListener::bind(&path).unwrap();
        assert!(matches!(listen(&path), Err(HostError::Running(_))));
        let ending = std::thread::spawn(move || {
            std::thread::sleep(ENDING[0] / 2);
            drop(before);
        });
        let (file, listener) = listen(&path).unwrap();
        ending.join().unwrap();
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(path.exists(), "removed with the others of the run directory");
        drop(file);
        assert!(!path.exists());
    }
}
