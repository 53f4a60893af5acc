//! Where a manager lives: its run directory, the sockets in it, and the folders of launchers.

mod held_dir;
mod launch_dir;

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub use held_dir::HeldDir;
pub use launch_dir::RunDir;

/// The run directory where none is named: `$LEVY_RUN_DIR`, else `levy` in `$XDG_RUNTIME_DIR`, else `/run/levy` for
/// root and `/tmp/levy-UID` for other users.
pub fn default_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("LEVY_RUN_DIR") {
        return dir.into();
    }
    if let Some(base) = std::env::var_os("XDG_RUNTIME_DIR") {
        return Path::new(&base).join("levy");
    }
    match rustix::process::getuid() {
        uid if uid.is_root() => "/run/levy".into(),
        uid => format!("/tmp/levy-{}", uid.as_raw()).into(),
    }
}

/// Makes the run directory, for its owner alone.
///
/// # Errors
/// When the host refuses, or the directory belongs to another user.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    // In a directory that all users may write to, another user may have been faster.
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(dir)?);
    if owner != rustix::process::getuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the directory belongs to another user",
        ));
    }
    Ok(())
}

/// Where guests' processes find their manager: two sockets in its run directory, and what else it keeps there.
#[derive(Debug, Clone)]
pub struct Sockets {
    /// For reports and orders.
    pub guests: PathBuf,
    /// For the pages that are shared.
    pub pages: PathBuf,
    /// What the next manager takes over.
    pub kept: PathBuf,
}

impl Sockets {
    /// The sockets of the manager whose run directory is `dir`.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            guests: dir.join("guests.sock"),
            pages: dir.join("pages.sock"),
            kept: kept_in(dir),
        }
    }

    /// Removes the sockets; what is kept stays.
    pub fn remove(&self) {
        for door in [&self.guests, &self.pages] {
            let _ = std::fs::remove_file(door);
        }
    }
}

/// The file of the run directory `dir` in which a manager leaves what the next one takes over.
pub fn kept_in(dir: &Path) -> PathBuf {
    dir.join("kept.json")
}

/// The API's socket of the manager whose run directory is `dir`.
pub fn api_socket(dir: &Path) -> PathBuf {
    dir.join("api.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_is_private_and_made_once() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("a/b");
        make_dir(&dir).unwrap();
        make_dir(&dir).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&dir).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o700);
    }
}
