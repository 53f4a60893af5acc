//! What a guest's own process can still swap, and where.
//!
//! How much that is its process says, and only what is asked for this guest is tested against it. On which file system it
//! is counts for other guests too, which find that much less free there: so the kernel has to confirm it.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use allocator::Pages;

use levy_protocol::link::SwapRoom;

/// Space that a swap file grows by: with less than that it does not.
const STEP: Pages = Pages::from_mib(1);

/// Descriptors of a process that are looked at: an honest one has fewer.
const DESCRIPTORS: usize = 4096;

/// What a guest's process can still swap, by its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OwnSwap {
    /// The file system that its swap file is on. None where the kernel does not confirm that: then it counts alone.
    pub(super) device: Option<u64>,
    /// Free on that file system.
    pub(super) free: Pages,
    /// On the disk for its swap file, without a page in it.
    pub(super) spare: Pages,
}

impl OwnSwap {
    /// What a process says that has something open on the file systems `open`.
    pub(super) fn new(said: SwapRoom, open: &BTreeSet<u64>) -> Self {
        Self {
            device: Some(said.device).filter(|device| open.contains(device)),
            free: Pages::new(said.free_bytes / 4096).min(Pages::LIMIT),
            spare: Pages::new(said.spare_bytes / 4096).min(Pages::LIMIT),
        }
    }

    /// The same after it said so much.
    pub(super) fn now(self, said: SwapRoom) -> Self {
        Self {
            device: self.device,
            ..Self::new(said, &BTreeSet::new())
        }
    }

    /// Whether no more pages fit.
    pub(super) fn is_full(&self) -> bool {
        self.free < STEP && self.spare < STEP
    }
}

/// The file systems on which process `pid` has something open, by the numbers of their devices. None of the files is
/// looked at: a server that does not answer would be waited for.
///
/// # Errors
/// When the process is gone or may not be read.
pub(super) fn open_devices(pid: u32) -> io::Result<BTreeSet<u64>> {
    let mut mounts = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.take(DESCRIPTORS) {
        // A descriptor that was closed meanwhile is none.
        let about = fs::read_to_string(entry?.path()).unwrap_or_default();
        let mount = about.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        mounts.extend(mount.map(|id| id.trim().to_owned()));
    }
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let device = |line: &str| {
        let mut fields = line.split(' ');
        let id = fields.next()?;
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        let device = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
        mounts.contains(id).then_some(device)
    };
    Ok(table.lines().filter_map(device).collect())
}

/// A guest's own swap does not hold what may have to go there.
#[derive(Debug, thiserror::Error)]
#[error(
    "guest {guest:?} cannot swap all of its max - min: its swap folder has {} bytes free ({} in its swap file), other \
     guests that swap to that file system may need {} of them, and {} bytes are missing; free them there, or restart \
     it with a --swap folder that has more, or with a min higher by {missing}",
    bytes(*.free), bytes(*.spare), bytes(*.others), bytes(*.missing)
)]
pub struct SwapShortage {
    /// The guest.
    pub guest: String,
    /// Free where its swap file is.
    pub free: Pages,
    /// In its swap file, without a page.
    pub spare: Pages,
    /// What other guests may still take there.
    pub others: Pages,
    /// What is missing.
    pub missing: Pages,
}

impl SwapShortage {
    /// What is missing where the guest called `guest` may still have to swap `needed` beyond its swap file and others
    /// on its file system `others`.
    ///
    /// # Errors
    /// When that is anything.
    pub(super) fn test(guest: &str, swap: OwnSwap, needed: Pages, others: Pages) -> Result<(), Self> {
        let missing = needed.less(swap.free.less(others));
        if missing == Pages::ZERO {
            return Ok(());
        }
        Err(Self {
            guest: guest.to_owned(),
            free: swap.free,
            spare: swap.spare,
            others,
            missing,
        })
    }
}

fn bytes(pages: Pages) -> u64 {
    pages.get().saturating_mul(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_something_open_where_it_has_a_folder_open_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let _open = fs::File::open(dir.path()).unwrap();
        let open = open_devices(std::process::id()).unwrap();
        let device = rustix::fs::stat(dir.path()).unwrap().st_dev;
        let said = |device| SwapRoom {
            device,
            free_bytes: 8 << 20,
            spare_bytes: 4096,
        };
        assert_eq!(OwnSwap::new(said(device), &open).device, Some(device));
        assert_eq!(OwnSwap::new(said(u64::MAX), &open).device, None);
        assert!(open_devices(u32::MAX).is_err());
    }
}
