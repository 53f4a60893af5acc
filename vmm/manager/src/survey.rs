//! What the kernel says about memory, asked without any lock.

use std::collections::{BTreeMap, BTreeSet};

use allocator::{GuestId, Pages};
use page_share::{LocalManager, POOL_FILE};

use super::groups::whole_pages;
use levy_protocol::link::PoolSize;
use levy_protocol::process_memory::{self, Counted, Held, ProcessMemory};

/// What to ask about.
#[derive(Debug)]
pub(super) struct Survey {
    /// All guests' processes.
    pub(super) processes: Vec<Surveyed>,
    /// Sharing domains, for their pools.
    pub(super) domains: Vec<LocalManager>,
}

/// One guest's process.
#[derive(Debug, Clone, PartialEq)]
pub struct Surveyed {
    pub(super) id: GuestId,
    pub(super) pid: u32,
    /// Its guest's size.
    pub(super) size: Pages,
    /// Pools of which it says that it may have pages; none where it was not heard yet.
    pub(super) pools: Option<Vec<PoolSize>>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// What each guest's process costs. One that has just died is left out: its last count holds until it is removed.
    pub(super) counted: Vec<(GuestId, Counted)>,
    /// Pools of common copies, each page once.
    pub(super) pools: Pages,
    /// Pools of managers that are gone, each once.
    pub(super) old_pools: Pages,
    /// A process was not heard yet, and the kernel does not show what pools it has: `old_pools` may be too small.
    pub(super) misses_pools: bool,
    /// The manager's own process.
    pub(super) manager: Pages,
}

impl Survey {
    /// Asks; `process_memory` knows what of it is due.
    pub(super) fn measure(&self, process_memory: &mut ProcessMemory) -> Measured {
        let processes = self.processes.iter();
        let counted =
            processes.filter_map(|process| Some((process.id, process_memory.of(process.pid).ok()?)));
        let pools = self
            .domains
            .iter()
            .filter_map(|domain| domain.with(|domain| domain.pool_bytes().unwrap_or(0)));
        let (old_pools, misses_pools) = self.old_pools();
        Measured {
            counted: counted.collect(),
            pools: whole_pages(pools.fold(0, u64::saturating_add)),
            old_pools,
            misses_pools,
            manager: whole_pages(Held::of(std::process::id()).unwrap_or_default().total()),
        }
    }

    /// What the pools of managers that are gone occupy, and whether there may be more of them. Guests' processes name
    /// them, or the kernel does where they have said nothing yet. How much a pool occupies the kernel says; where that is
    /// not shown they do, up to their guests' sizes.
    fn old_pools(&self) -> (Pages, bool) {
        let (mut pools, mut misses_pools) = (BTreeMap::<u64, u64>::new(), false);
        // The pools of now are counted as such.
        let inodes = self.domains.iter();
        let inodes = inodes.filter_map(|domain| domain.with(|domain| domain.pool_inode().ok())?);
        let own: BTreeSet<u64> = inodes.collect();
        for process in &self.processes {
            let named = process.pools.as_deref();
            let is_counted = |pool: &PoolSize| own.contains(&pool.id) || pools.contains_key(&pool.id);
            if named.is_some_and(|named| named.iter().all(is_counted)) {
                continue;
            }
            let found: Vec<PoolSize> = match (process_memory::memory_files(process.pid, POOL_FILE), named) {
                (Ok(files), _) => files
                    .into_iter()
                    .map(|(id, bytes)| PoolSize { id, bytes })
                    .collect(),
                (Err(_), Some(named)) => believed(named, process.size),
                (Err(_), None) => {
                    misses_pools = true;
                    continue;
                }
            };
            for pool in found.iter().filter(|pool| !own.contains(&pool.id)) {
                let known = pools.entry(pool.id).or_default();
                *known = pool.bytes.max(*known);
            }
        }
        let bytes = pools.into_values().fold(0, u64::saturating_add);
        (whole_pages(bytes), misses_pools)
    }
}

/// What is believed of the pools that the process of a guest of this size names: all together as much as its guest.
fn believed(named: &[PoolSize], size: Pages) -> Vec<PoolSize> {
    let mut left = size.get().saturating_mul(4096);
    let pools = named.iter().map(|pool| {
        let bytes = pool.bytes.min(left);
        left -= bytes;
        PoolSize { id: pool.id, bytes }
    });
    pools.collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::process::{Command, Stdio};

    use super::*;

    /// A pool of a manager that is gone, open in this process.
    fn pool(pages: usize) -> (File, PoolSize) {
        let file = rustix::fs::memfd_create(POOL_FILE, rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.write_all_at(&vec![1; pages * 4096], 0).unwrap();
        let (id, bytes) = (file.metadata().unwrap().ino(), pages as u64 * 4096);
        (file, PoolSize { id, bytes })
    }

    fn surveyed(id: u32, pid: u32, pools: Option<Vec<PoolSize>>) -> Surveyed {
        Surveyed {
            id: GuestId::new(id.into()),
            pid,
            size: Pages::new(64),
            pools,
        }
    }

    fn old_pools(processes: Vec<Surveyed>) -> (u64, bool) {
        let domains = Vec::new();
        let (pages, misses_pools) = Survey { processes, domains }.old_pools();
        (pages.get(), misses_pools)
    }

    /// Everything that needs pools of this process: other tests of this program may have some of their own.
    #[test]
    fn pools_of_managers_that_are_gone_are_counted_from_the_first_survey_on() {
        let here = std::process::id();
        let (kept_open, named) = pool(7);
        // It ends with its input, also where this test fails.
        let mut other = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let there = other.id();
        // What has not been heard has the pools that the kernel shows.
        let (pages, misses_pools) = old_pools(vec![surveyed(0, here, None)]);
        assert!(pages >= 7 && !misses_pools, "{pages}");
        // A process that names a pool which it has let go of hides it from none that has it.
        let both = vec![
            surveyed(0, there, Some(vec![named])),
            surveyed(1, here, Some(vec![named])),
        ];
        let (pages, misses_pools) = old_pools(both);
        assert!(pages >= 7 && !misses_pools, "{pages}");
        drop((kept_open, other.stdin.take()));
        other.wait().unwrap();
    }

    #[test]
    fn where_the_kernel_shows_no_pools_a_process_is_believed_up_to_its_guests_size_once_it_was_heard() {
        let gone = u32::MAX;
        let named = |id, pages: u64| PoolSize {
            id,
            bytes: pages * 4096,
        };
        assert_eq!(old_pools(vec![surveyed(0, gone, None)]), (0, true));
        assert_eq!(old_pools(vec![surveyed(0, gone, Some(Vec::new()))]), (0, false));
        let heard = surveyed(0, gone, Some(vec![named(3, 40), named(4, 40)]));
        assert_eq!(old_pools(vec![heard]), (64, false));
    }
}
