//! What a guest's own process can still swap, and where.
//!
//! How much that is its process says, and only what is asked for this guest is tested against it. On which file system it
//! is counts for other guests too, which find that much less free there: so the kernel has to confirm it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use allocator::Pages;

use levy_protocol::link::SwapRoom;

/// Space that a swap file grows by: with less than that it does not.
const STEP: Pages = Pages::from_mib(1);

/// Descriptors of a process that are looked at: an honest one has fewer.
const DESCRIPTORS: usize = 4096;

/// Of them, those that are open for nothing.
const FOLDERS: usize = 16;

/// Bytes that are read of what the kernel says about one: the mount stands in the first hundred.
const ABOUT: u64 = 256;

/// Bytes that are read of a process's mount table.
const MOUNT_TABLE: u64 = 4 << 20;

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
    /// What a process says that swaps to the file system `device`, by the kernel's word.
    pub(super) fn new(said: SwapRoom, device: Option<u64>) -> Self {
        Self {
            device,
            free: Pages::new(said.free_bytes / 4096).min(Pages::LIMIT),
            spare: Pages::new(said.spare_bytes / 4096).min(Pages::LIMIT),
        }
    }

    /// The same after it said so much.
    pub(super) fn now(self, said: SwapRoom) -> Self {
        Self::new(said, self.device)
    }

    /// Whether no more pages fit.
    pub(super) fn is_full(&self) -> bool {
        self.free < STEP && self.spare < STEP
    }
}

/// Whether process `pid` has a folder open on the file system with that device number. A descriptor that is open for
/// nothing but to be asked about (`O_PATH`) shows that. None of the files is looked at: a server that does not answer
/// would be waited for. Nor is anything that takes longer the more the process makes of it.
///
/// # Errors
/// When the process is gone or may not be read.
pub(super) fn has_folder_on(pid: u32, device: u64) -> io::Result<bool> {
    let mounts = mounts_of_folders(pid)?;
    let table = File::open(format!("/proc/{pid}/mountinfo"))?.take(MOUNT_TABLE);
    for line in BufReader::new(table).split(b'\n') {
        // Paths in it may be in no encoding.
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let mut fields = line.split(' ');
        let is_open = fields.next().is_some_and(|mount| mounts.contains(mount));
        if is_open && fields.nth(1).and_then(device_number) == Some(device) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The mounts that descriptors of process `pid` are on which are open for nothing.
fn mounts_of_folders(pid: u32) -> io::Result<BTreeSet<String>> {
    let (mut mounts, mut folders) = (BTreeSet::new(), 0);
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.take(DESCRIPTORS) {
        let entry = entry?;
        // A descriptor that was closed meanwhile is none.
        let Ok(link) = fs::symlink_metadata(entry.path()) else {
            continue;
        };
        if link.mode() & 0o700 != 0 {
            continue;
        }
        let about = Path::new("/proc").join(pid.to_string()).join("fdinfo");
        let about = File::open(about.join(entry.file_name()));
        let mut text = String::new();
        if about.is_ok_and(|about| about.take(ABOUT).read_to_string(&mut text).is_ok()) {
            let mount = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
            mounts.extend(mount.map(|id| id.trim().to_owned()));
        }
        folders += 1;
        if folders == FOLDERS {
            break;
        }
    }
    Ok(mounts)
}

fn device_number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
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
    use rustix::fs::{Mode, OFlags};

    #[test]
    fn a_process_has_a_folder_where_it_holds_one_open_for_nothing_and_nowhere_else() {
        let pid = std::process::id();
        // Of all file systems the one that no test has such a folder on.
        let device = rustix::fs::stat("/proc").unwrap().st_dev;
        assert!(!has_folder_on(pid, device).unwrap());
        let open = |flags| rustix::fs::open("/proc", flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let _read = open(OFlags::DIRECTORY);
        assert!(!has_folder_on(pid, device).unwrap());
        let _folder = open(OFlags::DIRECTORY | OFlags::PATH);
        assert!(has_folder_on(pid, device).unwrap());
        assert!(!has_folder_on(pid, u64::MAX).unwrap());
        assert!(has_folder_on(u32::MAX, device).is_err());
    }
}
