//! The folder that a guest's pages are swapped to, and what still fits there.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use levy_protocol::link::SwapRoom;
use rustix::fs::{Mode, OFlags};

/// The folder, held open: a process that is confined opens nothing, and a manager believes in a file system only where
/// the process has something open.
#[derive(Debug)]
pub(super) struct SwapFolder {
    folder: OwnedFd,
    device: u64,
}

impl SwapFolder {
    /// Opens `path`, for nothing but to be asked about.
    ///
    /// # Errors
    /// When there is no such folder, or the system has no descriptor left.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty())?;
        let device = rustix::fs::fstat(&folder)?.st_dev;
        Ok(Self { folder, device })
    }

    /// What can still be swapped there by a process whose swap file has `spare_bytes` that no page is in.
    ///
    /// # Errors
    /// When the file system does not say: one without a size, such as a tmpfs of `size=0`, has no figure.
    pub(super) fn room(&self, spare_bytes: u64) -> io::Result<SwapRoom> {
        let free = rustix::fs::fstatvfs(&self.folder)?;
        if free.f_blocks == 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(SwapRoom {
            device: self.device,
            free_bytes: free.f_bavail.saturating_mul(free.f_frsize),
            spare_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_room_and_is_on_the_file_system_that_it_is_on() {
        let dir = tempfile::tempdir().unwrap();
        let room = SwapFolder::open(dir.path()).unwrap().room(4096).unwrap();
        let device = rustix::fs::stat(dir.path()).unwrap().st_dev;
        assert_eq!((room.device, room.spare_bytes), (device, 4096));
        assert!(room.free_bytes > 0);
        assert!(SwapFolder::open(&dir.path().join("gone")).is_err());
    }

    #[test]
    fn a_file_system_without_a_size_says_nothing() {
        assert!(SwapFolder::open(Path::new("/proc")).unwrap().room(0).is_err());
    }
}
