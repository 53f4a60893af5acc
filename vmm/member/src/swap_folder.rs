//! The folder that a guest's pages are swapped to, and what still fits there.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use levy_protocol::link::SwapRoom;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, getrlimit};

/// The folder, held open: a process that is confined opens nothing, and a manager believes in a file system only where
/// the process has something open.
#[derive(Debug)]
pub(super) struct SwapFolder {
    folder: OwnedFd,
    device: u64,
    /// Bytes in the longest file that this process may write, where that is limited.
    longest_file: Option<u64>,
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
        // Asked here: a confined process could not ask later.
        let longest_file = getrlimit(Resource::Fsize).current;
        Ok(Self {
            folder,
            device,
            longest_file,
        })
    }

    /// What can still be swapped there by a process whose swap file has `swapped_bytes` of pages and `spare_bytes` that no
    /// page is in. The file grows no longer than RLIMIT_FSIZE.
    ///
    /// # Errors
    /// When nothing says: a file system without a size, such as a tmpfs of `size=0`, has no figure.
    pub(super) fn room(&self, swapped_bytes: u64, spare_bytes: u64) -> io::Result<SwapRoom> {
        let there = rustix::fs::fstatvfs(&self.folder)?;
        let free = (there.f_blocks > 0).then(|| there.f_bavail.saturating_mul(there.f_frsize));
        let has = swapped_bytes.saturating_add(spare_bytes);
        let allowed = self.longest_file.map(|most| most.saturating_sub(has));
        let free_bytes = free.into_iter().chain(allowed).min();
        Ok(SwapRoom {
            device: self.device,
            free_bytes: free_bytes.ok_or(io::ErrorKind::Unsupported)?,
            spare_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::setrlimit;

    use super::*;

    #[test]
    fn a_folder_has_room_and_is_on_the_file_system_that_it_is_on() {
        let dir = tempfile::tempdir().unwrap();
        let room = SwapFolder::open(dir.path()).unwrap().room(0, 4096).unwrap();
        let device = rustix::fs::stat(dir.path()).unwrap().st_dev;
        assert_eq!((room.device, room.spare_bytes), (device, 4096));
        assert!(room.free_bytes > 0);
        assert!(SwapFolder::open(&dir.path().join("gone")).is_err());
    }

    #[test]
    fn a_file_system_without_a_size_says_nothing_and_the_longest_file_bounds_every_one() {
        let unlimited = Path::new("/proc");
        assert!(SwapFolder::open(unlimited).unwrap().room(0, 0).is_err());
        // More than any test writes.
        let longest = 1 << 50;
        let before = getrlimit(Resource::Fsize);
        let limit = rustix::process::Rlimit {
            current: Some(longest),
            ..before
        };
        setrlimit(Resource::Fsize, limit).unwrap();
        let limited = SwapFolder::open(unlimited).unwrap();
        setrlimit(Resource::Fsize, before).unwrap();
        assert_eq!(limited.room(0, 0).unwrap().free_bytes, longest);
        // What is in the file already is part of it.
        let room = limited.room(8192, 4096).unwrap();
        assert_eq!((room.free_bytes, room.spare_bytes), (longest - 12288, 4096));
        let dir = tempfile::tempdir().unwrap();
        let small = SwapFolder {
            longest_file: Some(1 << 20),
            ..SwapFolder::open(dir.path()).unwrap()
        };
        assert_eq!(small.room(0, 0).unwrap().free_bytes, 1 << 20);
        assert_eq!(small.room(1 << 20, 4096).unwrap().free_bytes, 0);
    }
}
