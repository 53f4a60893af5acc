//! Where a manager lives, and what it can promise from there.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use allocator::Pages;

/// The run directory where nobody names one: `$LEVY_RUN_DIR`, else `levy` in `$XDG_RUNTIME_DIR`, else `/run/levy` for
/// root and `/tmp/levy-UID` for everybody else.
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
/// When the host refuses, or the directory belongs to somebody else.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    // In a directory that everybody may write to, somebody else may have been faster.
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(dir)?);
    if owner != rustix::process::getuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the directory belongs to another user",
        ));
    }
    Ok(())
}

/// How much swap may be promised: what is free where swap files go.
///
/// # Errors
/// When there is no such directory.
pub fn backing(swap: &Path) -> io::Result<Pages> {
    let room = rustix::fs::statvfs(swap)?;
    Ok(Pages::new(room.f_bavail.saturating_mul(room.f_frsize) / 4096).min(Pages::LIMIT))
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

    #[test]
    fn backing_is_what_the_file_system_has_free() {
        assert!(backing(Path::new("/var/tmp")).unwrap() > Pages::ZERO);
        assert!(backing(Path::new("/no/such/place")).is_err());
    }
}
