//! The other end of the control socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::{Reply, Request};
use crate::socket::check_path;

/// Why a VMM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// It cannot be reached.
    #[error("no VMM answers on {path}", path = path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// It refused.
    #[error("the VMM says: {0}")]
    Refused(String),
}

impl ClientError {
    /// Whether the VMM may be well: the asking process is short of descriptors or memory, or the socket's file is gone.
    pub fn vmm_may_be_well(&self) -> bool {
        let Self::Unreachable { source, .. } = self else {
            return false;
        };
        let harmless = [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOMEM,
            libc::ENOBUFS,
            libc::ENOENT,
        ];
        source
            .raw_os_error()
            .is_some_and(|error| harmless.contains(&error))
    }
}

/// A connection to one VMM.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the VMM whose socket is `path`; each reply may take up to `patience`.
    ///
    /// # Errors
    /// When no process listens there.
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, ClientError> {
        let unreachable = |source| ClientError::Unreachable {
            path: path.to_owned(),
            source,
        };
        check_path(path).map_err(unreachable)?;
        let stream = UnixStream::connect(path).map_err(unreachable)?;
        stream.set_read_timeout(Some(patience)).map_err(unreachable)?;
        Ok(Self {
            path: path.to_owned(),
            stream: BufReader::new(stream),
        })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// When the VMM is gone, takes too long or refuses.
    pub fn ask(&mut self, request: &Request) -> Result<Value, ClientError> {
        match self.exchange(request) {
            Ok(Reply::Ok(value)) => Ok(value),
            Ok(Reply::Error(message)) => Err(ClientError::Refused(message)),
            Err(source) => Err(ClientError::Unreachable {
                path: self.path.clone(),
                source,
            }),
        }
    }

    fn exchange(&mut self, request: &Request) -> io::Result<Reply> {
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        self.stream.get_mut().write_all(&text)?;
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_was_removed_says_nothing_of_its_vmm() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("1.control");
        let connect = || {
            Client::connect(&socket, Duration::from_secs(1))
                .map(drop)
                .unwrap_err()
        };
        assert!(connect().vmm_may_be_well());
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(!connect().vmm_may_be_well(), "no process listens any more");
    }
}
