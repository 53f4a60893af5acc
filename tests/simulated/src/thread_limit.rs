//! A process that gets no further threads.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A control group that takes in a process and its threads, and no further ones until it is dropped.
#[derive(Debug)]
pub struct ThreadLimit {
    group: PathBuf,
    /// Where the process comes from.
    home: PathBuf,
}

impl ThreadLimit {
    /// Process `pid` gets at most `spare` threads more than it has.
    ///
    /// # Errors
    ///
    /// No control group limits processes here, or this process may not make one.
    pub fn new(pid: u32, spare: usize) -> io::Result<Self> {
        let (root, home) = places(&fs::read_to_string(format!("/proc/{pid}/cgroup"))?)?;
        let group = root.join(format!("levy-test-{pid}"));
        fs::create_dir(&group)?;
        // Dropped, it takes the group away, whatever of this went well.
        let limit = Self { group, home };
        fs::write(limit.group.join("cgroup.procs"), pid.to_string())?;
        let threads = fs::read_dir(format!("/proc/{pid}/task"))?.count();
        fs::write(limit.group.join("pids.max"), (threads + spare).to_string())?;
        Ok(limit)
    }

    /// The same; none, and a line that says so, where no such limit can be had.
    #[must_use]
    pub fn or_skip(pid: u32, spare: usize) -> Option<Self> {
        let limit = Self::new(pid, spare);
        limit
            .map_err(|error| println!("skipped: no control group for a limit of threads: {error}"))
            .ok()
    }
}

impl Drop for ThreadLimit {
    fn drop(&mut self) {
        let _ = fs::write(self.group.join("pids.max"), "max");
        let processes = fs::read_to_string(self.group.join("cgroup.procs"));
        for pid in processes.unwrap_or_default().lines() {
            let _ = fs::write(self.home.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.group);
    }
}

/// Where control groups that limit processes can be made, and the one of the process whose `groups` these are: both
/// versions.
fn places(groups: &str) -> io::Result<(PathBuf, PathBuf)> {
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
