//! How much memory the manager may spend on guests.

mod bounds;

use std::io;
use std::path::{Path, PathBuf};

pub use bounds::Mib;

/// Part of the machine's available memory that is left alone where no budget was named, in percent.
const RESERVE_PERCENT: u64 = 10;

/// Least memory left alone where no budget was named.
const RESERVE_FLOOR: u64 = 256 << 20;

/// Part of a control group's limit that is left below it, in percent. At its limit the kernel kills: what the group's
/// processes need besides what is counted (the kernel's tables for guests, sockets, files that are being written) must
/// fit.
const GROUP_RESERVE_PERCENT: u64 = 10;

/// Least memory left below a control group's limit, as long as that leaves half of it.
const GROUP_RESERVE_FLOOR: u64 = 64 << 20;

/// Where the budget's number came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The command line or the API named it.
    Explicit,
    /// The tightest limit of the control groups that this process is in, less what is in use there already and a reserve of
    /// 10 %, at least 64 MiB; the path is that group's.
    Cgroup(PathBuf),
    /// What the machine had available at the start, less a reserve of 10 %, at least 256 MiB.
    Available,
}

/// Memory for guests, pools and everything the manager keeps for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Bytes.
    pub bytes: u64,
    /// Where the number came from.
    pub source: Source,
}

/// Why there is no budget.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// The machine does not say how much memory it has.
    #[error("the machine does not say how much memory it has; give --budget")]
    Unknown(#[source] io::Error),
    /// It was asked for, and cannot be.
    #[error(
        "a budget of {bytes} bytes is out of bounds: it goes from {least} to {most}, twice the {machine} of this machine"
    )]
    OutOfBounds {
        /// What was asked for.
        bytes: u64,
        /// The least that it may be.
        least: Mib,
        /// The most that it may be.
        most: Mib,
        /// What the machine has.
        machine: Mib,
    },
}

impl Budget {
    /// The budget where none is named: what the tightest control group has left, or what the machine has available,
    /// whichever is less, each less a reserve.
    ///
    /// # Errors
    /// When /proc/meminfo cannot be read.
    pub fn detect() -> io::Result<Self> {
        let meminfo = std::fs::read_to_string("/proc/meminfo")?;
        let available = field(&meminfo, "MemAvailable:")
            .ok_or_else(|| io::Error::other("/proc/meminfo has no MemAvailable"))?;
        Ok(choose(available, limit_here()))
    }
}

fn choose(available: u64, limit: Option<(u64, PathBuf)>) -> Budget {
    let reserve = (available / 100 * RESERVE_PERCENT).max(RESERVE_FLOOR);
    let bytes = available.saturating_sub(reserve);
    match limit {
        Some((limit, group)) if below(limit) < bytes => Budget {
            bytes: below(limit),
            source: Source::Cgroup(group),
        },
        _ => Budget {
            bytes,
            source: Source::Available,
        },
    }
}

/// What may be spent of a control group's `limit`: never all of it.
fn below(limit: u64) -> u64 {
    let reserve = (limit / 100 * GROUP_RESERVE_PERCENT).max(GROUP_RESERVE_FLOOR);
    limit - reserve.min(limit / 2)
}

/// A field of /proc/meminfo, bytes.
fn field(meminfo: &str, name: &str) -> Option<u64> {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    kib.trim()
        .strip_suffix(" kB")?
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}

/// The least that a memory limit of the control groups that this process is in leaves, and the group that has it.
fn limit_here() -> Option<(u64, PathBuf)> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limit(&groups, Path::new("/sys/fs/cgroup"))
}

/// The least that a memory limit on the way from this process's group to the root leaves, and the group that has it.
fn limit(groups: &str, mount: &Path) -> Option<(u64, PathBuf)> {
    groups
        .lines()
        .filter_map(|line| {
            // "0::/path" is the unified hierarchy, "5:memory:/path" the old one.
            let mut parts = line.splitn(3, ':');
            match (parts.next()?, parts.next()?, parts.next()?) {
                ("0", "", path) => Some((mount.to_owned(), path, &UNIFIED)),
                (_, "memory", path) => Some((mount.join("memory"), path, &OLD)),
                _ => None,
            }
        })
        .flat_map(|(root, path, files)| {
            let groups: Vec<_> = Path::new(path.trim_start_matches('/'))
                .ancestors()
                .map(|p| root.join(p))
                .collect();
            groups.into_iter().flat_map(move |group| {
                let used = files.used(&group);
                files.limits.iter().filter_map(move |file| {
                    let text = std::fs::read_to_string(group.join(file)).ok()?;
                    let limit = text.trim().parse::<u64>().ok()?;
                    Some((limit.saturating_sub(used), group.clone()))
                })
            })
        })
        .min()
}

/// The names of a control group's files.
struct Files {
    limits: &'static [&'static str],
    usage: &'static str,
    /// Fields of `memory.stat` that the kernel gives up for whatever asks.
    cache: &'static [&'static str],
}

const UNIFIED: Files = Files {
    limits: &["memory.high", "memory.max"],
    usage: "memory.current",
    cache: &["active_file", "inactive_file"],
};

const OLD: Files = Files {
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    cache: &["total_active_file", "total_inactive_file"],
};

impl Files {
    /// What is in use in `group` already and stays there: caches of files are not.
    fn used(&self, group: &Path) -> u64 {
        let read = |name| std::fs::read_to_string(group.join(name)).unwrap_or_default();
        let usage = read(self.usage).trim().parse::<u64>().unwrap_or(0);
        let stat = read("memory.stat");
        let figures = stat.lines().filter_map(|line| line.split_once(' '));
        let cache = figures.filter(|(name, _)| self.cache.contains(name));
        let cache = cache.filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok());
        usage.saturating_sub(cache.sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn without_a_limit_a_tenth_is_left_alone() {
        let budget = choose(10 * GIB, None);
        assert_eq!(
            (budget.bytes, budget.source),
            (10 * GIB - 10 * GIB / 100 * 10, Source::Available)
        );
    }

    #[test]
    fn a_small_machine_keeps_its_floor() {
        assert_eq!(choose(GIB, None).bytes, GIB - RESERVE_FLOOR);
        assert_eq!(choose(RESERVE_FLOOR / 2, None).bytes, 0);
    }

    #[test]
    fn the_tightest_group_on_the_way_to_the_root_counts() {
        let mount = tempfile::tempdir().unwrap();
        let inner = mount.path().join("fleet/web");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(inner.join("memory.max"), "max\n").unwrap();
        std::fs::write(mount.path().join("fleet/memory.high"), format!("{}\n", 2 * GIB)).unwrap();
        std::fs::write(mount.path().join("fleet/memory.max"), format!("{}\n", 3 * GIB)).unwrap();
        let found = limit("0::/fleet/web\n", mount.path());
        assert_eq!(found, Some((2 * GIB, mount.path().join("fleet"))));
        // A tenth is left below the limit.
        assert_eq!(choose(10 * GIB, found).bytes, 2 * GIB - 2 * GIB / 100 * 10);
        // What is in use there already is gone, but for the caches of files.
        std::fs::write(
            mount.path().join("fleet/memory.current"),
            format!("{}\n", GIB / 2),
        )
        .unwrap();
        let stat = format!("anon 7\nactive_file {}\ninactive_file {}\n", GIB / 8, GIB / 8);
        std::fs::write(mount.path().join("fleet/memory.stat"), stat).unwrap();
        let found = limit("0::/fleet/web\n", mount.path());
        assert_eq!(found, Some((2 * GIB - GIB / 4, mount.path().join("fleet"))));
    }

    #[test]
    fn a_groups_limit_is_never_taken_to_the_byte() {
        for limit in [
            0,
            1,
            4096,
            1 << 20,
            100 << 20,
            128 << 20,
            200 << 20,
            GIB,
            100 * GIB,
        ] {
            let bytes = below(limit);
            assert!(limit == 0 || bytes < limit || limit == 1, "{limit}: {bytes}");
            assert!(bytes >= limit / 2);
            assert!(limit < 128 << 20 || limit - bytes >= GROUP_RESERVE_FLOOR);
        }
        let none = choose(10 * GIB, Some((1 << 30, "/g".into())));
        assert_eq!(none.source, Source::Cgroup("/g".into()));
    }

    #[test]
    fn the_old_hierarchy_is_read_too() {
        let mount = tempfile::tempdir().unwrap();
        let group = mount.path().join("memory/guests");
        std::fs::create_dir_all(&group).unwrap();
        std::fs::write(group.join("memory.limit_in_bytes"), "1048576\n").unwrap();
        assert_eq!(
            limit("7:cpu:/x\n5:memory:/guests\n", mount.path()),
            Some((1 << 20, group))
        );
    }

    #[test]
    fn this_machine_has_a_budget() {
        assert!(Budget::detect().unwrap().bytes > 0);
    }
}
