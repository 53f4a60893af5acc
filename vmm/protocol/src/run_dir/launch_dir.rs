//! The folder in which one launch keeps its guests' sockets and console logs.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::{HeldDir, path_in};

const PREFIX: &str = "levy-run-";

/// A private folder that is removed with everything in it when this is dropped.
#[derive(Debug)]
pub struct RunDir(HeldDir);

impl RunDir {
    /// Makes a folder in `$XDG_RUNTIME_DIR`, or else where temporary files go. Folders of launchers that were killed
    /// are removed on the way; those of living ones, in whatever container, are not.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> io::Result<Self> {
        Self::below(&base())
    }

    fn below(base: &Path) -> io::Result<Self> {
        for left in HeldDir::abandoned(base, PREFIX) {
            drop(Self(left));
        }
        HeldDir::create(base, PREFIX, 0o700).map(Self)
    }

    /// The folders of all launchers, sorted by name.
    pub fn all() -> Vec<PathBuf> {
        let entries = std::fs::read_dir(base()).into_iter().flatten().flatten();
        let mut folders: Vec<_> = entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
            .map(|entry| entry.path())
            .collect();
        folders.sort();
        folders
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.path());
    }
}

fn base() -> PathBuf {
    base_among(|name| std::env::var_os(name))
}

pub(super) fn base_among(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let named = |name| path_in(variable(name));
    named("XDG_RUNTIME_DIR")
        .or_else(|| named("TMPDIR"))
        .unwrap_or_else(|| "/tmp".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_taken_is_no_obstacle() {
        let (one, other) = (RunDir::new().unwrap(), RunDir::new().unwrap());
        assert_ne!(one.path(), other.path());
        assert!(one.path().is_dir() && other.path().is_dir());
        assert!(RunDir::all().contains(&other.path().to_owned()));
        let path = one.path().to_owned();
        drop(one);
        assert!(!path.exists() && other.path().exists());
    }

    #[test]
    fn what_a_dead_launcher_left_goes_and_what_a_living_one_has_stays() {
        let base = tempfile::tempdir().unwrap();
        // Number 1 runs, and has nothing to do with it; the other number is none.
        let left = ["levy-run-1", "levy-run-4194305.2"].map(|name| base.path().join(name));
        for path in &left {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("guest.log"), "").unwrap();
        }
        let one = RunDir::below(base.path()).unwrap();
        let other = RunDir::below(base.path()).unwrap();
        assert!(left.iter().all(|path| !path.exists()));
        assert!(one.path().is_dir() && other.path().is_dir());
    }
}
