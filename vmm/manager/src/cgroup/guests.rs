//! A control group for each guest, below the group of all.
//!
//! A guest's process keeps itself to its limit; one that does not is held by the kernel: `memory.high` of its group is
//! what it may hold, so that it is slowed down before it eats what others were promised. The kernel counts more than the
//! manager does (its own tables for the guest, caches of files), which is what the slack is for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use allocator::GuestId;

use super::set_high;

/// Begins the names of guests' groups; the guest's number follows.
const PREFIX: &str = "guest-";

/// What the kernel may need for a guest besides what the manager counts: a fixed part, bytes.
const SLACK: u64 = 16 << 20;

/// The same as a part of the guest's limit, as a divisor.
const SLACK_PART: u64 = 32;

/// A group follows when its limit moves by more than this part, as a divisor: setting it makes the kernel reclaim.
const MOVED: u64 = 128;

/// The groups of all guests of one manager.
#[derive(Debug)]
pub(super) struct Guests {
    group: PathBuf,
    /// What `memory.high` of each says.
    highs: BTreeMap<GuestId, u64>,
}

impl Guests {
    /// Divides `group`: its processes have groups of their own from now on.
    ///
    /// # Errors
    /// When the kernel does not pass the memory controller on.
    pub(super) fn below(group: &Path) -> io::Result<Self> {
        fs::write(group.join("cgroup.subtree_control"), "+memory")?;
        Ok(Self {
            group: group.to_owned(),
            highs: BTreeMap::new(),
        })
    }

    /// Takes in process `pid`, which runs `guest`.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn take_in(&mut self, guest: GuestId, pid: u32) -> io::Result<()> {
        let path = self.path(guest);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.highs.entry(guest).or_insert(u64::MAX);
        fs::write(path.join("cgroup.procs"), pid.to_string())
    }

    /// Holds each guest to what it may hold, bytes, where it was given a limit. The groups of guests that are not named
    /// are removed.
    ///
    /// # Errors
    /// What the kernel says first; the others are followed all the same.
    pub(super) fn follow(&mut self, allowed: &BTreeMap<GuestId, Option<u64>>) -> io::Result<()> {
        let gone = self.highs.keys().filter(|guest| !allowed.contains_key(guest));
        for guest in gone.copied().collect::<Vec<_>>() {
            self.highs.remove(&guest);
            // A process that has not quite ended keeps its group until the manager's end.
            let _ = fs::remove_dir(self.path(guest));
        }
        let mut result = Ok(());
        for (guest, high) in &mut self.highs {
            let Some(bytes) = allowed.get(guest).copied().flatten().map(with_slack) else {
                continue;
            };
            if high.abs_diff(bytes) <= bytes / MOVED {
                continue;
            }
            match set_high(&self.group.join(name(*guest)), &bytes.to_string()) {
                Ok(()) => *high = bytes,
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    fn path(&self, guest: GuestId) -> PathBuf {
        self.group.join(name(guest))
    }
}

fn name(guest: GuestId) -> String {
    format!("{PREFIX}{}", guest.get())
}

fn with_slack(allowed: u64) -> u64 {
    let bytes = allowed.saturating_add(allowed / SLACK_PART).saturating_add(SLACK);
    bytes - bytes % 4096
}

/// The guests' groups in `group`.
pub(super) fn found(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    let guests = entries.filter(|entry| {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        number.is_some_and(|number| number.parse::<u64>().is_ok())
    });
    guests.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_high_that_the_kernel_takes_time_for_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let guest = GuestId::new(1);
        let mut guests = Guests::below(dir.path()).unwrap();
        guests.take_in(guest, 77).unwrap();
        // Opening a pipe that no process reads waits, unless it is asked not to.
        let high = dir.path().join("guest-1/memory.high");
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &high, fifo, 0o600.into(), 0).unwrap();
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let _ = done.send(guests.follow(&[(guest, Some(64 << 20))].into()));
        });
        let outcome = is_done.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::ENXIO));
    }

    #[test]
    fn each_guests_group_follows_its_limit_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut guests = Guests::below(dir.path()).unwrap();
        let control = dir.path().join("cgroup.subtree_control");
        assert_eq!(fs::read_to_string(control).unwrap(), "+memory");
        let [one, two] = [1, 2].map(GuestId::new);
        for (guest, pid) in [(one, 77), (two, 78), (one, 77)] {
            guests.take_in(guest, pid).unwrap();
        }
        let read = |guest: u64, name: &str| {
            let file = dir.path().join(format!("guest-{guest}")).join(name);
            fs::read_to_string(file).unwrap_or_default()
        };
        assert_eq!(
            (read(1, "cgroup.procs"), read(2, "cgroup.procs")),
            ("77".into(), "78".into())
        );
        let mib = |count: u64| Some(count << 20);
        guests.follow(&[(one, mib(64)), (two, None)].into()).unwrap();
        // No limit was given to the second.
        assert_eq!(read(1, "memory.high"), (82_u64 << 20).to_string());
        assert_eq!(
            (read(2, "memory.high"), read(1, "memory.max")),
            (String::new(), String::new())
        );
        guests
            .follow(&[(one, Some((64 << 20) + 4096)), (two, mib(32))].into())
            .unwrap();
        assert_eq!(
            read(1, "memory.high"),
            (82_u64 << 20).to_string(),
            "it moved too little"
        );
        assert_eq!(read(2, "memory.high"), (49_u64 << 20).to_string());
        guests.follow(&[(one, mib(32)), (two, mib(32))].into()).unwrap();
        assert_eq!(read(1, "memory.high"), (49_u64 << 20).to_string());
        assert_eq!(found(dir.path()).len(), 2);
        // Here the directory has files; the kernel's has none that count.
        fs::remove_file(dir.path().join("guest-2/cgroup.procs")).unwrap();
        fs::remove_file(dir.path().join("guest-2/memory.high")).unwrap();
        guests.follow(&[(one, mib(32))].into()).unwrap();
        assert_eq!(found(dir.path()), [dir.path().join("guest-1")]);
        assert!(guests.follow(&[(one, Some(u64::MAX))].into()).is_ok());
    }
}
