//! The guests' processes as the kernel lets them be watched, and the sharing domains whose pages they map.
//!
//! References go only by a proof of death, which the watch of a process gives to [`Processes::dead`].

use std::collections::BTreeMap;
use std::io;

use allocator::GuestId;
use page_share::{Dead, Domain, GuestProcess, LocalManager, Peer, PoolLimit};
use rustix::process::{Signal, pidfd_send_signal};

use crate::registry::{Fate, LeftDomain, ProcessId, Sharer};

/// Pages that one domain's pool may ever hold; how many it may hold now, each round says.
const POOL_LIMIT: u32 = 1 << 24;

/// What a manager has of the kernel's for its guests.
#[derive(Debug, Default)]
pub(super) struct Processes {
    watches: BTreeMap<GuestId, GuestProcess>,
    /// Proofs of death of guests that are not forgotten yet.
    proofs: BTreeMap<GuestId, Dead>,
    /// Of processes that are no guest yet.
    found: BTreeMap<ProcessId, GuestProcess>,
    domains: BTreeMap<String, LocalManager>,
}

impl Processes {
    /// `handle` watches `process`, which is a guest perhaps.
    pub(super) fn offer(&mut self, process: ProcessId, handle: GuestProcess) {
        self.found.insert(process, handle);
    }

    /// Watches those of `processes` that live, and says what is known of each.
    pub(super) fn look(&mut self, processes: &[ProcessId]) -> BTreeMap<ProcessId, Fate> {
        let mut fate = |process: ProcessId| match GuestProcess::of_started(process.pid, process.started) {
            Ok(Some(handle)) => {
                self.offer(process, handle);
                Fate::Lives
            }
            Ok(None) => Fate::Gone,
            Err(error) => Fate::Unknown(error),
        };
        processes
            .iter()
            .map(|&process| (process, fate(process)))
            .collect()
    }

    /// `process` runs `guest`. One that came back keeps the watch that it was admitted with.
    pub(super) fn watch(&mut self, guest: GuestId, process: ProcessId) {
        if let Some(handle) = self.found.get(&process) {
            self.watches.entry(guest).or_insert_with(|| handle.clone());
        }
    }

    /// Processes that are no guest are watched no longer.
    pub(super) fn drop_found(&mut self) {
        self.found.clear();
    }

    /// The guests whose processes are dead.
    pub(super) fn dead(&mut self) -> Vec<GuestId> {
        let dead = self.watches.iter();
        self.proofs = dead
            .filter_map(|(&guest, process)| Some((guest, process.dead()?)))
            .collect();
        self.proofs.keys().copied().collect()
    }

    /// Whether process `pid` runs a guest. The number of a dead one may have gone to another process.
    pub(super) fn runs_guest(&self, pid: u32) -> bool {
        let mut watches = self.watches.values();
        watches.any(|process| process.pid() == pid && process.dead().is_none())
    }

    /// Kills `guest`'s process, and no other that may have its number by now.
    ///
    /// # Errors
    /// When it is not watched, gone already, or this manager may not.
    pub(super) fn kill(&self, guest: GuestId) -> io::Result<()> {
        let process = self.watches.get(&guest).ok_or(io::ErrorKind::NotFound)?;
        Ok(pidfd_send_signal(process, Signal::KILL)?)
    }

    /// The guest that `process`, which was looked at just now, runs.
    pub(super) fn guest_of(&self, process: &GuestProcess) -> Option<GuestId> {
        let mut watches = self.watches.iter();
        watches
            .find(|(_, watch)| process.is_still(watch))
            .map(|(&guest, _)| guest)
    }

    /// Forgets a guest and the references of its process, which is dead, and its domain with the last guest in it.
    pub(super) fn forget(&mut self, guest: GuestId, left: Option<&LeftDomain>) {
        self.watches.remove(&guest);
        let dead = self.proofs.remove(&guest);
        let Some(LeftDomain { name, is_empty }) = left else {
            return;
        };
        if let (Some(domain), Some(dead)) = (self.domains.get(name), dead) {
            domain.with(|domain| domain.detach(&dead));
        }
        if *is_empty {
            self.domains.remove(name);
        }
    }

    /// The domain called `name`, which is made for the first guest in it, with a pool of `limit` at first.
    ///
    /// # Errors
    /// When the system has no file for its pool.
    pub(super) fn domain(&mut self, name: &str, limit: PoolLimit) -> io::Result<LocalManager> {
        if let Some(domain) = self.domains.get(name) {
            return Ok(domain.clone());
        }
        let mut domain = Domain::new(POOL_LIMIT)?;
        domain.limit_pool(limit);
        let domain = LocalManager::new(domain);
        self.domains.insert(name.to_owned(), domain.clone());
        Ok(domain)
    }

    /// Drops the domain called `name`.
    pub(super) fn drop_domain(&mut self, name: &str) {
        self.domains.remove(name);
    }

    /// The sharing domains by name.
    pub(super) fn domains(&self) -> &BTreeMap<String, LocalManager> {
        &self.domains
    }

    /// A guest as `page-share` knows it.
    pub(super) fn peer(&self, sharer: &Sharer) -> Option<Peer> {
        Some(Peer {
            pages: sharer.frames,
            process: self.watches.get(&sharer.guest)?.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_number_of_a_dead_process_runs_no_guest() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let started = GuestProcess::of_child(pid).unwrap().started().unwrap();
        let mut processes = Processes::default();
        let process = ProcessId { pid, started };
        assert!(matches!(processes.look(&[process])[&process], Fate::Lives));
        processes.watch(GuestId::new(1), process);
        assert!(processes.runs_guest(pid) && !processes.runs_guest(pid + 1));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!processes.runs_guest(pid));
        assert_eq!(processes.dead(), [GuestId::new(1)]);
    }
}
