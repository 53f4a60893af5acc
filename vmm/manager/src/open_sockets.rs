//! The sockets that this manager has opened in its run directory, and whether they are still there.
//!
//! A socket whose file was removed is opened again, as long as the directory is the one that it was. A manager whose
//! directory is gone, or whose place another manager has taken, ends: no guest would find it.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use levy_protocol::socket::{FileId, SocketError, SocketFile};

use super::host::Host;
use super::sockets::{HostError, Sockets, listen};

/// Both sockets, and the directory in which they are.
#[derive(Debug)]
pub(super) struct OpenSockets {
    dir: PathBuf,
    id: FileId,
    guests: OpenSocket,
    pages: OpenSocket,
}

#[derive(Debug)]
struct OpenSocket {
    path: PathBuf,
    file: SocketFile,
    /// What listens there now, until the thread that accepts has taken it.
    fresh: Option<UnixListener>,
    /// The log says that it cannot be opened again.
    said: bool,
}

/// Why no guest finds this manager any more.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Lost {
    #[error(
        "the run directory {0} was removed or replaced, so that no guest finds this manager; it ends, and its guests run on"
    )]
    Dir(PathBuf),
    #[error("another manager has taken {0}; this one ends, and its guests run on")]
    Taken(PathBuf),
}

impl OpenSockets {
    pub(super) fn open(sockets: &Sockets) -> Result<Self, HostError> {
        let dir = sockets.guests.parent().unwrap_or(Path::new("."));
        let id = FileId::of(dir).map_err(|source| HostError::Listen {
            path: dir.to_owned(),
            source,
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            id,
            guests: OpenSocket::open(&sockets.guests)?,
            pages: OpenSocket::open(&sockets.pages)?,
        })
    }

    /// Opens again what was removed.
    ///
    /// # Errors
    /// When that is of no use any more.
    pub(super) fn look_after(&mut self) -> Result<(), Lost> {
        self.is_own()?;
        self.guests.look_after()?;
        self.pages.look_after()
    }

    /// Whether the directory is this manager's.
    fn is_own(&self) -> Result<(), Lost> {
        match FileId::of(&self.dir) {
            Ok(found) if found == self.id => Ok(()),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(Lost::Dir(self.dir.clone())),
        }
    }

    /// What listens for guests' processes from now on, where that has changed.
    pub(super) fn fresh_guests(&mut self) -> Option<UnixListener> {
        self.guests.fresh.take()
    }

    /// The same for their pages.
    pub(super) fn fresh_pages(&mut self) -> Option<UnixListener> {
        self.pages.fresh.take()
    }
}

impl OpenSocket {
    fn open(path: &Path) -> Result<Self, HostError> {
        let (file, listener) = listen(path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            fresh: Some(listener),
            said: false,
        })
    }

    fn look_after(&mut self) -> Result<(), Lost> {
        if self.file.is_there() {
            return Ok(());
        }
        match SocketFile::bind(&self.path) {
            Ok((file, listener)) => {
                log::warn!("{} was removed; it is there again", self.path.display());
                (self.file, self.fresh, self.said) = (file, Some(listener), false);
            }
            Err(SocketError::InUse { path }) => return Err(Lost::Taken(path)),
            Err(error) => {
                if !std::mem::replace(&mut self.said, true) {
                    log::error!(
                        "guests cannot connect, a socket was removed and cannot be opened again: {}",
                        levy_protocol::error_chain(&error)
                    );
                }
            }
        }
        Ok(())
    }
}

impl Host {
    /// Opens sockets again that were removed, and ends this manager where no guest would find it.
    pub(super) fn look_after_sockets(&self) {
        let lost = match &mut *self.open_sockets() {
            Some(open) => open.look_after().err(),
            None => None,
        };
        if let Some(lost) = lost {
            self.give_up(&lost);
        }
    }

    /// Whether the run directory, and the file in it that the next manager reads, are this manager's.
    pub(super) fn owns_run_dir(&self) -> bool {
        let open = self.open_sockets();
        open.as_ref().is_some_and(|open| open.is_own().is_ok())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_was_removed_is_opened_again_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = Sockets::in_dir(dir.path());
        let mut open = OpenSockets::open(&sockets).unwrap();
        let _listeners = (open.fresh_guests().unwrap(), open.fresh_pages().unwrap());
        open.look_after().unwrap();
        assert!(open.fresh_guests().is_none() && open.fresh_pages().is_none());
        std::fs::remove_file(&sockets.pages).unwrap();
        open.look_after().unwrap();
        assert!(open.fresh_guests().is_none());
        let fresh = open.fresh_pages().unwrap();
        UnixStream::connect(&sockets.pages).unwrap();
        fresh.accept().unwrap();
    }

    #[test]
    fn another_managers_socket_and_another_directory_are_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("levy");
        std::fs::create_dir(&dir).unwrap();
        let sockets = Sockets::in_dir(&dir);
        let mut open = OpenSockets::open(&sockets).unwrap();
        std::fs::remove_file(&sockets.guests).unwrap();
        let other = UnixListener::bind(&sockets.guests).unwrap();
        assert_eq!(open.look_after(), Err(Lost::Taken(sockets.guests.clone())));
        std::fs::rename(&dir, base.path().join("away")).unwrap();
        assert_eq!(open.look_after(), Err(Lost::Dir(dir.clone())));
        std::fs::create_dir(&dir).unwrap();
        let next = UnixListener::bind(&sockets.guests).unwrap();
        assert_eq!(open.look_after(), Err(Lost::Dir(dir)));
        drop(open);
        assert!(sockets.guests.exists(), "it is the next one's");
        drop((other, next));
    }

    #[test]
    fn a_file_that_has_a_sockets_name_meanwhile_stays_and_does_not_end_the_manager() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = Sockets::in_dir(dir.path());
        let mut open = OpenSockets::open(&sockets).unwrap();
        std::fs::remove_file(&sockets.guests).unwrap();
        std::fs::write(&sockets.guests, "precious").unwrap();
        open.look_after().unwrap();
        assert_eq!(std::fs::read_to_string(&sockets.guests).unwrap(), "precious");
        std::fs::remove_file(&sockets.guests).unwrap();
        open.look_after().unwrap();
        UnixStream::connect(&sockets.guests).unwrap();
    }
}
