//! What the kernel says about memory, asked without any lock.

use std::collections::{BTreeMap, BTreeSet};

use allocator::{GuestId, Pages};
use page_share::LocalManager;

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
    /// Pools of which it says that it may have pages.
    pub(super) pools: Vec<PoolSize>,
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
        Measured {
            counted: counted.collect(),
            pools: whole_pages(pools.fold(0, u64::saturating_add)),
            old_pools: self.old_pools(),
            manager: whole_pages(Held::of(std::process::id()).unwrap_or_default().total()),
        }
    }

    /// What the pools occupy that guests' processes name: by the kernel's count, or where that is not shown by their word,
    /// up to their guests' sizes.
    fn old_pools(&self) -> Pages {
        let mut pools = BTreeMap::<u64, u64>::new();
        // The pools of now are counted as such.
        let inodes = self.domains.iter();
        let inodes = inodes.filter_map(|domain| domain.with(|domain| domain.pool_inode().ok())?);
        let own: BTreeSet<u64> = inodes.collect();
        for process in &self.processes {
            let old = process.pools.iter().filter(|pool| !own.contains(&pool.id));
            if old.clone().all(|pool| pools.contains_key(&pool.id)) {
                continue;
            }
            let files = process_memory::memory_files(process.pid);
            let mut believed = process.size.get().saturating_mul(4096);
            for pool in old {
                let bytes = match &files {
                    Ok(files) => files.get(&pool.id).copied().unwrap_or(0),
                    Err(_) => pool.bytes.min(believed),
                };
                believed = believed.saturating_sub(bytes);
                let known = pools.entry(pool.id).or_default();
                *known = bytes.max(*known);
            }
        }
        whole_pages(pools.into_values().fold(0, u64::saturating_add))
    }
}
