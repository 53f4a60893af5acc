//! The folder in which one launch keeps its guests' sockets and console logs.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const PREFIX: &str = "levy-run-";

/// Names that are tried.
const ATTEMPTS: u32 = 100;

/// A private folder that is removed with everything in it when this is dropped.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Makes a folder in `$XDG_RUNTIME_DIR`, or else where temporary files go. Folders of launchers that were killed
    /// are removed on the way.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> io::Result<Self> {
        let base = base();
        sweep(&base);
        let pid = std::process::id();
        let mut taken = None;
        // One may be there already: of a killed launcher that had our number, or of another set of process numbers.
        for attempt in 0..ATTEMPTS {
            let path = base.join(match attempt {
                0 => format!("{PREFIX}{pid}"),
                _ => format!("{PREFIX}{pid}.{attempt}"),
            });
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => taken = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(taken.unwrap_or_else(|| io::ErrorKind::AlreadyExists.into()))
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
        &self.path
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn base() -> PathBuf {
    std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// Removes folders whose launcher no longer runs. Those of other users stay: removing them fails.
fn sweep(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('.').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_taken_is_no_obstacle() {
        let (one, other) = (RunDir::new().unwrap(), RunDir::new().unwrap());
        assert_ne!(one.path(), other.path());
        assert!(one.path().is_dir() && other.path().is_dir());
        assert!(RunDir::all().contains(&other.path));
        let path = one.path().to_owned();
        drop(one);
        assert!(!path.exists() && other.path().exists());
    }
}
