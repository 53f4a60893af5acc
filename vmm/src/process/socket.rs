//! Unix sockets whose files go away with their owner.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::confine;

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error("{path}: another process listens on this socket; give another path", path = path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The host refuses.
    #[error("{path}: cannot create a socket there", path = path.display())]
    Host {
        /// The socket.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
}

/// The file of a socket; removed when this is dropped, unless that is for whoever started this process to do.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
}

impl SocketFile {
    /// Listens on `path`. A file left by a process that no longer listens is replaced.
    ///
    /// # Errors
    /// When somebody listens there or the host refuses.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let listener = match UnixListener::bind(path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => Self::replace(path)?,
            other => other.map_err(|source| SocketError::Host {
                path: path.to_owned(),
                source,
            })?,
        };
        let file = Self {
            path: path.to_owned(),
        };
        Ok((file, listener))
    }

    fn replace(path: &Path) -> Result<UnixListener, SocketError> {
        let host = |source| SocketError::Host {
            path: path.to_owned(),
            source,
        };
        match UnixStream::connect(path) {
            Ok(_) => Err(SocketError::InUse {
                path: path.to_owned(),
            }),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(host)?;
                UnixListener::bind(path).map_err(host)
            }
            Err(e) => Err(host(e)),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if confine::removes_sockets() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_in_use_is_left_alone_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (file, listener) = SocketFile::bind(&path).unwrap();
        assert!(matches!(SocketFile::bind(&path), Err(SocketError::InUse { .. })));
        drop(listener);
        std::mem::forget(file);
        let (file, _listener) = SocketFile::bind(&path).unwrap();
        drop(file);
        assert!(!path.exists());
    }
}
