//! Unix sockets whose files go away with their owner, and no other file does.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Another process listens there.
    #[error("{path}: another process listens on this socket; give another path", path = path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// A file of another kind has the name.
    #[error(
        "{path}: a file that is not a socket has this name, and is left alone; give another path",
        path = path.display()
    )]
    NotASocket {
        /// The file.
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

/// Bytes in the longest path of a socket: the kernel's `sun_path` less its final zero.
const LONGEST_PATH: usize = 107;

/// Whether a socket can have this path.
///
/// # Errors
/// `InvalidInput` when it is longer than 107 bytes, in words for people.
pub fn check_path(path: &Path) -> io::Result<()> {
    let bytes = path.as_os_str().len();
    match bytes <= LONGEST_PATH {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "the path has {bytes} bytes, and that of a socket at most {LONGEST_PATH}; use a shorter directory"
            ),
        )),
    }
}

/// The file of a socket that this process listens on; removed when this is dropped, unless the file is another process's
/// meanwhile, or its removal is left to the launcher.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    file: FileId,
    left_to_starter: bool,
}

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// The file or directory at `path`, symbolic links followed.
    ///
    /// # Errors
    /// When it is not there, or cannot be looked at.
    pub fn of(path: &Path) -> io::Result<Self> {
        let found = std::fs::metadata(path)?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
        })
    }

    /// The socket at `path`; `None` when something else has that name.
    fn of_socket(path: &Path) -> io::Result<Option<Self>> {
        let found = std::fs::symlink_metadata(path)?;
        let id = Self {
            device: found.dev(),
            inode: found.ino(),
        };
        Ok(found.file_type().is_socket().then_some(id))
    }

    /// Removes this socket's file at `path`. Any other one that has the name by now stays.
    fn remove(self, path: &Path) -> io::Result<()> {
        match Self::of_socket(path)? {
            Some(found) if found == self => std::fs::remove_file(path),
            _ => Ok(()),
        }
    }
}

impl SocketFile {
    /// Listens on `path`. A socket left by a process that no longer listens is replaced, and nothing else is.
    ///
    /// # Errors
    /// When another process listens there, another kind of file is there, the path is too long, or the host refuses.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let host = |source| SocketError::Host {
            path: path.to_owned(),
            source,
        };
        check_path(path).map_err(host)?;
        let listener = match UnixListener::bind(path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                clear(path)?;
                UnixListener::bind(path).map_err(host)?
            }
            other => other.map_err(host)?,
        };
        let file = FileId::of_socket(path).map_err(host)?;
        let file = file.ok_or_else(|| SocketError::NotASocket {
            path: path.to_owned(),
        })?;
        let path = path.to_owned();
        let left_to_starter = false;
        Ok((
            Self {
                path,
                file,
                left_to_starter,
            },
            listener,
        ))
    }

    /// Whether the file is where it was made.
    pub fn is_there(&self) -> bool {
        FileId::of_socket(&self.path).is_ok_and(|found| found == Some(self.file))
    }

    /// Leaves the file in place when this is dropped: the process that started this one removes it, because confinement
    /// forbids it here.
    pub fn leave_to_starter(&mut self) {
        self.left_to_starter = true;
    }
}

/// Removes the socket at `path` if no process listens on it.
fn clear(path: &Path) -> Result<(), SocketError> {
    let path_owned = || path.to_owned();
    let host = |source| SocketError::Host {
        path: path_owned(),
        source,
    };
    let Some(file) = FileId::of_socket(path).map_err(host)? else {
        return Err(SocketError::NotASocket { path: path_owned() });
    };
    match knock(path) {
        Err(Errno::CONNREFUSED) => file.remove(path).map_err(host),
        // It listens, and has no time or no room for one more; or it listens for another kind of message.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(SocketError::InUse { path: path_owned() }),
        Err(error) => Err(host(error.into())),
    }
}

/// Connects to the socket at `path` without waiting.
fn knock(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.left_to_starter {
            // Removed already, perhaps with its folder.
            let _ = self.file.remove(&self.path);
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

    #[test]
    fn a_path_that_is_too_long_is_refused_with_its_length() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().as_os_str().len() + 1;
        let path = |bytes: usize| dir.path().join("n".repeat(bytes - folder));
        assert!(SocketFile::bind(&path(LONGEST_PATH)).is_ok());
        let error = SocketFile::bind(&path(LONGEST_PATH + 1)).unwrap_err();
        let text = crate::error_chain(&error);
        assert!(
            text.contains("nnn: ") && text.contains("108 bytes") && text.contains("at most 107"),
            "{text}"
        );
    }

    #[test]
    fn a_listener_that_does_not_accept_is_in_use_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_file, _listener) = SocketFile::bind(&path).unwrap();
        let full = std::iter::repeat_with(|| knock(&path)).take(10_000);
        assert!(full.into_iter().any(|knocked| knocked == Err(Errno::AGAIN)) || knock(&path).is_ok());
        assert!(matches!(SocketFile::bind(&path), Err(SocketError::InUse { .. })));
    }

    #[test]
    fn files_that_are_not_sockets_keep_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, folder) = (dir.path().join("f"), dir.path().join("l"), dir.path().join("d"));
        std::fs::write(&file, "precious").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        std::fs::create_dir(&folder).unwrap();
        for path in [&file, &link, &folder] {
            let error = SocketFile::bind(path).unwrap_err();
            assert!(
                matches!(error, SocketError::NotASocket { .. }),
                "{}: {error}",
                path.display()
            );
            assert!(error.to_string().contains("give another path"), "{error}");
        }
        assert_eq!(std::fs::read_to_string(&link).unwrap(), "precious");
        assert!(folder.is_dir());
    }

    #[test]
    fn one_that_leaves_does_not_take_its_successors_socket_along() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (first, _listener) = SocketFile::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let (second, listener) = SocketFile::bind(&path).unwrap();
        drop(first);
        assert!(knock(&path).is_ok());
        drop((second, listener));
        assert!(!path.exists());
        // Nor a file that took its name.
        let (third, _listener) = SocketFile::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        drop(third);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
