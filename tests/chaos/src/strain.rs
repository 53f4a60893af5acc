//! What a process runs out of for a while: descriptors, threads, room on the disk.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::memory;

/// A process with too few of something; it has enough again once this is dropped.
#[derive(Debug)]
pub(crate) enum Strain {
    /// No further descriptors.
    Descriptors { pid: Pid, before: Rlimit },
    /// No further threads: a control group, and the one that the process comes from.
    Threads { pid: Pid, group: PathBuf, home: PathBuf },
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

    /// Process `pid` gets no more threads than it has and `spare`: by a control group of its own.
    pub(crate) fn threads(pid: Pid, spare: usize) -> io::Result<Self> {
        let number = pid.as_raw_nonzero().get().unsigned_abs();
        let (root, home) = pids_groups(&fs::read_to_string(format!("/proc/{number}/cgroup"))?)?;
        let group = root.join(format!("chaos-{number}"));
        fs::create_dir(&group)?;
        // Dropped, it takes the group away, whatever of this went well.
        let strain = Self::Threads {
            pid,
            group: group.clone(),
            home,
        };
        fs::write(group.join("cgroup.procs"), number.to_string())?;
        let most = memory::threads(number) + spare;
        fs::write(group.join("pids.max"), most.to_string())?;
        Ok(strain)
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
            Self::Threads { group, home, .. } => {
                let _ = fs::write(group.join("pids.max"), "max");
                let processes = fs::read_to_string(group.join("cgroup.procs"));
                for pid in processes.unwrap_or_default().lines() {
                    let _ = fs::write(home.join("cgroup.procs"), pid);
                }
                let _ = fs::remove_dir(group);
            }
            Self::Disk(file) => {
                let _ = fs::remove_file(file);
            }
        }
    }
}

/// Where control groups that limit processes can be made, and the one of the process whose `groups` these are: both
/// versions.
fn pids_groups(groups: &str) -> io::Result<(PathBuf, PathBuf)> {
    let of = |controller: &str| {
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            (parts.next()? == controller).then(|| parts.next()?.strip_prefix('/'))?
        })
    };
    let old = Path::new("/sys/fs/cgroup/pids");
    if let (true, Some(home)) = (old.join("cgroup.procs").exists(), of("pids")) {
        return Ok((old.to_owned(), old.join(home)));
    }
    let new = Path::new("/sys/fs/cgroup");
    let passed_on = fs::read_to_string(new.join("cgroup.subtree_control"))?;
    match (passed_on.split_whitespace().any(|name| name == "pids"), of("")) {
        (true, Some(home)) => Ok((new.to_owned(), new.join(home))),
        _ => Err(io::Error::other("no control group limits processes here")),
    }
}
