//! The control group of the guests: guests' processes in one control group whose `memory.high` is the budget.
//!
//! Below it each guest has a group of its own, whose `memory.high` is what its process may hold: one that ignores its
//! limit is slowed down, and its neighbours are not.
//!
//! The manager counts once a second. What guests grow in between by more than that, the kernel slows down: above
//! `memory.high` it makes the group's processes reclaim before they go on, and kills none. `memory.max`, which would
//! have one killed, is never touched.
//!
//! That needs a control group of version 2 in which the manager may make a group with the memory controller. Where
//! there is none the accounting and the growth gate do the work alone.

mod abandoned;
mod guests;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use allocator::GuestId;

pub use abandoned::let_go;
use guests::Guests;
use levy_protocol::run_dir::HeldDir;

/// Begins the names of all groups made here; the manager's process number follows. The manager holds its group: the
/// number alone would not say whether a manager in another container still runs.
const PREFIX: &str = "levy-";

/// Bytes by which `memory.high` is set above the budget: setting it makes the kernel reclaim.
const STEP: u64 = 1 << 20;

/// `--cgroup auto|off|PATH`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// Below the manager's own group, if that is possible.
    #[default]
    Auto,
    /// No group.
    Off,
    /// Below this one.
    Below(PathBuf),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            path if path.starts_with('/') => Ok(Self::Below(path.into())),
            _ => Err(
                "write auto, off, or the path of a control group such as /sys/fs/cgroup/guests".to_owned(),
            ),
        }
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Below(path) => path.display().fmt(f),
        }
    }
}

/// A group that was asked for cannot be made.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot make a control group with a memory limit below {parent} ({step}); \
     name a group of version 2 without processes of its own, or leave --cgroup out", parent = parent.display()
)]
pub struct CgroupError {
    parent: PathBuf,
    step: &'static str,
    #[source]
    source: io::Error,
}

/// The group of one manager's guests. Removed when this is dropped.
#[derive(Debug)]
pub struct MemoryHigh {
    parent: PathBuf,
    group: HeldDir,
    /// What `memory.high` says.
    high: Mutex<u64>,
    /// A group for each guest; none where the kernel does not allow that: then all guests are in one.
    guests: Option<Mutex<Guests>>,
}

impl MemoryHigh {
    /// The group that `choice` asks for; `None` where none is wanted, or, for [`Choice::Auto`], possible.
    ///
    /// # Errors
    /// When a named group cannot be used.
    pub fn find(choice: &Choice) -> Result<Option<Self>, CgroupError> {
        match choice {
            Choice::Off => Ok(None),
            Choice::Below(parent) => Self::below(parent).map(Some),
            Choice::Auto => {
                let Some(parent) = own_group() else {
                    log::debug!(
                        "no control group of version 2: growth between two samples is not slowed down"
                    );
                    return Ok(None);
                };
                match Self::below(&parent) {
                    Ok(memory_high) => Ok(Some(memory_high)),
                    Err(error) => {
                        log::debug!(
                            "growth between two samples is not slowed down: {error}: {}",
                            error.source
                        );
                        Ok(None)
                    }
                }
            }
        }
    }

    /// Makes a group below `parent`, and clears away those of managers that are gone.
    fn below(parent: &Path) -> Result<Self, CgroupError> {
        let failed = |step| {
            move |source| CgroupError {
                parent: parent.to_owned(),
                step,
                source,
            }
        };
        let offers =
            fs::read_to_string(parent.join("cgroup.controllers")).map_err(failed("its controllers"))?;
        if !offers.split_whitespace().any(|name| name == "memory") {
            return Err(failed("its controllers")(io::Error::other(
                "there is no memory controller",
            )));
        }
        let passes_on = fs::read_to_string(parent.join("cgroup.subtree_control")).unwrap_or_default();
        if !passes_on.split_whitespace().any(|name| name == "memory") {
            fs::write(parent.join("cgroup.subtree_control"), "+memory")
                .map_err(failed("passing the memory controller on"))?;
        }
        clear_away_the_dead(parent);
        let group = HeldDir::create(parent, PREFIX, 0o755).map_err(failed("a new group"))?;
        let guests = Guests::below(group.path()).inspect_err(|error| {
            log::warn!("guests have no control groups of their own, a process that ignores its limit is not slowed down alone: {error}");
        });
        Ok(Self {
            parent: parent.to_owned(),
            group,
            high: Mutex::new(u64::MAX),
            guests: guests.ok().map(Mutex::new),
        })
    }

    /// Where the group is.
    pub fn group(&self) -> &Path {
        self.group.path()
    }

    /// Takes in process `pid`, which runs `guest`: what it allocates from now on counts.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn take_in(&self, guest: GuestId, pid: u32) -> io::Result<()> {
        match self.guests() {
            Some(mut guests) => guests.take_in(guest, pid),
            None => fs::write(self.group().join("cgroup.procs"), pid.to_string()),
        }
    }

    /// Brakes each guest above what it may hold, bytes, from now on; one that was given no limit yet is not braked. Removes
    /// the groups of guests that are not named.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn follow_guests(&self, allowed: &BTreeMap<GuestId, Option<u64>>) -> io::Result<()> {
        self.guests().map_or(Ok(()), |mut guests| guests.follow(allowed))
    }

    fn guests(&self) -> Option<MutexGuard<'_, Guests>> {
        let guests = self.guests.as_ref()?;
        Some(guests.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Brakes above `budget` from now on, or above what the kernel cannot reclaim from the guests' processes, if that is
    /// more. Only the processes themselves can give that up, by compressing and swapping, for which they allocate: braked
    /// they would never get there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn follow(&self, budget: u64) -> io::Result<()> {
        let stat = fs::read_to_string(self.group().join("memory.stat")).unwrap_or_default();
        let bytes = budget.max(unreclaimable(&stat).next_multiple_of(STEP));
        let mut high = self.high.lock().unwrap_or_else(PoisonError::into_inner);
        if *high != bytes {
            set_high(self.group(), &bytes.to_string())?;
            *high = bytes;
        }
        Ok(())
    }
}

/// Bytes in a group's `memory.stat` that the kernel cannot reclaim, taken that there is no swap of its own.
fn unreclaimable(stat: &str) -> u64 {
    let figures = stat.lines().filter_map(|line| line.split_once(' '));
    let stays = figures.filter(|(name, _)| ["anon", "shmem", "kernel"].contains(name));
    stays
        .map(|(_, bytes)| bytes.trim().parse::<u64>().unwrap_or(0))
        .sum()
}

impl Drop for MemoryHigh {
    fn drop(&mut self) {
        remove(&self.parent, self.group());
    }
}

/// Removes a group. Guests that run on without their manager go back to the parent, or where that may have no processes
/// stay in the group, which no longer slows any of them down.
fn remove(parent: &Path, group: &Path) {
    for guest in guests::found(group) {
        release(parent, &guest);
    }
    release(parent, group);
}

/// Brakes a group's processes above `high`.
///
/// A write of less than the group has makes the kernel reclaim before it returns, which can take seconds that a round
/// does not have. From 6.16 on it leaves that to the processes where the file does not block; before, it takes no notice.
fn set_high(group: &Path, high: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new();
    file.write(true).create(true).truncate(true);
    file.custom_flags(libc::O_NONBLOCK);
    file.open(group.join("memory.high"))?.write_all(high.as_bytes())
}

fn release(parent: &Path, group: &Path) {
    let _ = set_high(group, "max");
    let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines() {
        let _ = fs::write(parent.join("cgroup.procs"), pid);
    }
    if let Err(error) = fs::remove_dir(group) {
        log::debug!(
            "{} stays until its processes have ended: {error}",
            group.display()
        );
    }
}

/// Removes groups whose manager was killed.
fn clear_away_the_dead(parent: &Path) {
    for left in HeldDir::abandoned(parent, PREFIX) {
        remove(parent, left.path());
    }
}

/// The directory of this process's own group of version 2.
fn own_group() -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    group_in(&groups, &mount()?)
}

/// The directory of the group of version 2 that is named in a process's `groups`.
fn group_in(groups: &str, mount: &Path) -> Option<PathBuf> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(mount.join(path.trim_start_matches('/')))
}

/// Where groups of version 2 are.
fn mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with a group's files; the kernel's part (removing them with the directory) is the test's.
    fn parent(controllers: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
        fs::write(dir.path().join("cgroup.subtree_control"), "").unwrap();
        fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        dir
    }

    #[test]
    fn what_stays_in_memory_is_what_has_no_file_and_a_figure_that_is_none_counts_nothing() {
        let stat = "anon 4096\nfile 1048576\nkernel much\nshmem 5\nshmem_thp 77\n";
        assert_eq!(unreclaimable(stat), 4096 + 5);
    }

    #[test]
    fn the_group_follows_the_budget_and_never_has_a_hard_limit() {
        let dir = parent("cpu memory pids\n");
        let memory_high = MemoryHigh::find(&Choice::Below(dir.path().to_owned()))
            .unwrap()
            .unwrap();
        let read = |name: &str| fs::read_to_string(memory_high.group().join(name)).unwrap_or_default();
        assert_eq!(
            fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap(),
            "+memory"
        );
        assert_eq!(read("cgroup.subtree_control"), "+memory");
        memory_high.follow(1 << 30).unwrap();
        assert_eq!(read("memory.high"), "1073741824");
        memory_high.follow(1 << 29).unwrap();
        assert_eq!(read("memory.high"), "536870912");
        // What guests have to give up themselves does not slow them down while they do.
        let stat = "anon 600000000\nfile 500000000\nkernel 1000\nshmem 300000000\nanon_thp 600000000\n";
        fs::write(memory_high.group().join("memory.stat"), stat).unwrap();
        memory_high.follow(1 << 29).unwrap();
        assert_eq!(
            read("memory.high"),
            900_001_000_u64.next_multiple_of(STEP).to_string()
        );
        memory_high.follow(1 << 30).unwrap();
        assert_eq!(read("memory.high"), "1073741824");
        memory_high.take_in(GuestId::new(3), 77).unwrap();
        memory_high
            .follow_guests(&[(GuestId::new(3), Some(1 << 28))].into())
            .unwrap();
        let guest = memory_high.group().join("guest-3");
        let of_guest = |name: &str| fs::read_to_string(guest.join(name)).unwrap_or_default();
        assert_eq!(
            (of_guest("cgroup.procs"), of_guest("memory.high")),
            ("77".into(), (280_u64 << 20).to_string())
        );
        assert_eq!(
            (read("cgroup.procs"), read("memory.max"), of_guest("memory.max")),
            (String::new(), String::new(), String::new())
        );
        let group = memory_high.group().to_owned();
        drop(memory_high);
        assert_eq!(fs::read_to_string(group.join("memory.high")).unwrap(), "max");
        assert_eq!(fs::read_to_string(guest.join("memory.high")).unwrap(), "max");
        assert_eq!(fs::read_to_string(dir.path().join("cgroup.procs")).unwrap(), "77");
    }

    /// A process that grows without end, once it is told to begin. Killed with this.
    struct Hog(std::process::Child);

    impl Hog {
        fn new() -> Self {
            let script = "read begin && exec tail -n 1 /dev/zero";
            let mut command = std::process::Command::new("sh");
            command.args(["-c", script]).stdin(std::process::Stdio::piped());
            Self(command.spawn().unwrap())
        }
    }

    impl Drop for Hog {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Where this machine lets us make control groups with a memory limit.
    fn of_this_machine() -> Option<MemoryHigh> {
        let root = Choice::Below("/sys/fs/cgroup".into());
        let named = MemoryHigh::find(&root).ok().flatten();
        named.or_else(|| MemoryHigh::find(&Choice::Auto).ok().flatten())
    }

    /// Tests with real guests run in a host that has such groups, and this one runs with them.
    fn why_not() -> &'static str {
        if std::env::var_os("LEVY_TEST_BINARY").is_none() {
            return "elsewhere: it runs with the real guests";
        }
        "no control group of version 2 with the memory controller may be made here"
    }

    #[test]
    fn the_kernel_slows_down_a_process_that_ignores_its_limit() {
        let Some(memory_high) = of_this_machine() else {
            println!("skipped: {}", why_not());
            return;
        };
        let (guest, mut hog) = (GuestId::new(1), Hog::new());
        memory_high.take_in(guest, hog.0.id()).unwrap();
        memory_high
            .follow_guests(&[(guest, Some(32 << 20))].into())
            .unwrap();
        hog.0.stdin.as_mut().unwrap().write_all(b"begin\n").unwrap();
        let group = memory_high.group().join("guest-1");
        let read = |name: &str| fs::read_to_string(group.join(name)).unwrap();
        let slowed = || {
            let events = read("memory.events");
            let high = events.lines().find_map(|line| line.strip_prefix("high "));
            high.is_some_and(|count| count != "0")
        };
        let begin = std::time::Instant::now();
        while !slowed() {
            assert!(begin.elapsed().as_secs() < 120, "nothing slows it down");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let holds: u64 = read("memory.current").trim().parse().unwrap();
        assert!(holds < 128 << 20, "{holds}");
        assert!(
            hog.0.try_wait().unwrap().is_none(),
            "it is slowed down, not killed"
        );
        let all = memory_high.group().to_owned();
        drop(hog);
        drop(memory_high);
        assert!(!all.exists(), "{} is left", all.display());
    }

    #[test]
    fn groups_of_managers_that_are_gone_are_removed_and_others_are_not() {
        let dir = parent("memory");
        // Above the highest process number there can be, as that of a manager in another container may seem.
        let (dead, other) = ("levy-4194305", "levy-x");
        for name in [dead, other] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let alive = MemoryHigh::below(dir.path()).unwrap();
        fs::remove_file(dir.path().join(dead).join("memory.high")).unwrap();
        clear_away_the_dead(dir.path());
        // Here the directory has a file by now; the kernel's has none that counts.
        assert!(
            fs::read_to_string(dir.path().join(dead).join("memory.high")).is_ok_and(|high| high == "max")
        );
        assert!(!alive.group().join("memory.high").exists());
        assert!(!dir.path().join(other).join("memory.high").exists());
    }

    #[test]
    fn a_named_group_that_cannot_be_used_is_an_error_and_the_automatic_one_is_not() {
        let dir = parent("cpu pids");
        let error = MemoryHigh::find(&Choice::Below(dir.path().to_owned())).unwrap_err();
        assert!(error.to_string().contains("control group"), "{error}");
        assert!(MemoryHigh::find(&Choice::Below("/nonexistent".into())).is_err());
        assert!(MemoryHigh::find(&Choice::Off).unwrap().is_none());
        assert!(MemoryHigh::find(&Choice::Auto).is_ok());
        assert!("below".parse::<Choice>().is_err());
        for text in ["auto", "off", "/sys/fs/cgroup/guests"] {
            assert_eq!(text.parse::<Choice>().unwrap().to_string(), text);
        }
    }
}
