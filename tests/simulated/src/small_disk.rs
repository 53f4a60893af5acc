//! A file system that is soon full.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A file system of a few MiB, gone when this is dropped.
#[derive(Debug)]
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// One of `mib` MiB; nothing, said aloud, where it cannot be mounted.
    pub fn or_skip(mib: u64) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "none"])
            .arg(dir.path())
            .output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            println!("skipped: this test needs to mount a small tmpfs, which takes root");
            return None;
        }
        Some(Self(dir))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Makes it one of `mib` MiB; it has no more in it.
    pub fn resize(&self, mib: u64) {
        let resized = Command::new("mount")
            .args(["-o", &format!("remount,size={mib}m")])
            .arg(self.path())
            .status();
        assert!(resized.is_ok_and(|status| status.success()));
    }

    /// KiB in use, by files without names too.
    pub fn used_kib(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.path()).expect("it is mounted");
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize / 1024
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}
