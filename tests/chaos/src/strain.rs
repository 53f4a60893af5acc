//! What a process runs out of for a while: descriptors, threads, room on the disk.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use simulated::ThreadLimit;

use crate::memory;

/// A process with too few of something; it has enough again once this is dropped.
#[derive(Debug)]
pub(crate) enum Strain {
    /// No further descriptors.
    Descriptors { pid: Pid, before: Rlimit },
    /// No further threads.
    Threads { pid: Pid, _limit: ThreadLimit },
    /// No room on the disk: the file that takes it.
    Disk(PathBuf),
}

impl Strain {
    /// Process `pid` gets no more descriptors than it has and `spare`.
    pub(crate) fn descriptors(pid: Pid, spare: u64) -> io::Result<Self> {
        let number = pid.as_raw_nonzero().get().unsigned_abs();
        let before = prlimit(
            Some(pid),
            Resource::Nofile,
            Rlimit {
                current: Some(memory::descriptors(number) as u64 + spare),
                maximum: rustix::process::getrlimit(Resource::Nofile).maximum,
            },
        )?;
        Ok(Self::Descriptors { pid, before })
    }

    /// Process `pid` gets no more threads than it has and `spare`.
    pub(crate) fn threads(pid: Pid, spare: usize) -> io::Result<Self> {
        let _limit = ThreadLimit::new(pid.as_raw_nonzero().get().unsigned_abs(), spare)?;
        Ok(Self::Threads { pid, _limit })
    }

    /// The process that has too little, where it is one.
    pub(crate) fn pid(&self) -> Option<Pid> {
        match self {
            Self::Descriptors { pid, .. } | Self::Threads { pid, .. } => Some(*pid),
            Self::Disk(_) => None,
        }
    }

    /// The file system of `dir` has no room.
    pub(crate) fn disk(dir: &Path) -> io::Result<Self> {
        let file = dir.join("full");
        let strain = Self::Disk(file.clone());
        let mut file = fs::File::create(file)?;
        let block = vec![1; 64 << 10];
        loop {
            match file.write_all(&block) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(strain),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Strain {
    fn drop(&mut self) {
        match self {
            // A process that is gone needs nothing.
            Self::Descriptors { pid, before } => {
                let _ = prlimit(Some(*pid), Resource::Nofile, *before);
            }
            Self::Threads { .. } => {}
            Self::Disk(file) => {
                let _ = fs::remove_file(file);
            }
        }
    }
}
