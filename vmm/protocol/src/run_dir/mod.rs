//! Where a manager lives: its run directory, the sockets in it, and the folders of launchers.

mod held_dir;
mod launch_dir;

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

pub use held_dir::HeldDir;
pub use launch_dir::RunDir;

/// The run directory where none is named: `$LEVY_RUN_DIR`, else `levy` in `$XDG_RUNTIME_DIR`, else `/run/levy` for
/// root and `/tmp/levy-UID` for other users. An empty variable is one that is not set.
pub fn default_dir() -> PathBuf {
    default_among(|name| std::env::var_os(name))
}

fn default_among(variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let named = |name| path_in(variable(name));
    let below_base = || named("XDG_RUNTIME_DIR").map(|base| base.join("levy"));
    named("LEVY_RUN_DIR")
        .or_else(below_base)
        .unwrap_or_else(|| match rustix::process::getuid() {
            uid if uid.is_root() => "/run/levy".into(),
            uid => format!("/tmp/levy-{}", uid.as_raw()).into(),
        })
}

/// The path that a variable of the environment holds. An empty one would be the working directory, and means none.
fn path_in(value: Option<OsString>) -> Option<PathBuf> {
    value.filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Makes the run directory, for its owner alone. One that is there is taken if other users cannot put files of theirs in
/// the place of the manager's: it belongs to this user or to root, and only its owner may write to it, or it is sticky
/// and root's, as /tmp is.
///
/// # Errors
/// When the host refuses, or other users could do that.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    // In a directory that all users may write to, another user may have been faster.
    trust(dir)
}

/// Finds out whether what listens in the run directory `dir` can be the manager of this user or of root, and of no other
/// user: a manager is told what is in its guests' pages. By the same rule as [`make_dir`].
///
/// # Errors
/// When it can be another user's ([`io::ErrorKind::PermissionDenied`]), or the directory cannot be looked at, as where
/// there is none.
pub fn trust(dir: &Path) -> io::Result<()> {
    let found = std::fs::metadata(dir)?;
    let own = rustix::process::getuid().as_raw();
    match distrust(found.uid(), found.mode(), own) {
        None => Ok(()),
        Some(reason) => Err(io::Error::new(io::ErrorKind::PermissionDenied, reason)),
    }
}

/// Whether `dir` is there and [no place to trust](trust).
pub fn is_strangers(dir: &Path) -> bool {
    trust(dir).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Why the user with number `own` cannot trust a directory of `owner` with this mode.
fn distrust(owner: u32, mode: u32, own: u32) -> Option<String> {
    const ROOT: u32 = 0;
    const STICKY: u32 = 0o1000;
    const OTHERS_WRITE: u32 = 0o022;
    if owner != own && owner != ROOT {
        return Some(format!("the directory belongs to another user, number {owner}"));
    }
    let as_tmp = owner == ROOT && mode & STICKY != 0;
    (mode & OTHERS_WRITE != 0 && !as_tmp).then(|| {
        format!(
            "other users may write to it (its mode is {:04o}), and could take the manager's place; `chmod go-w` it",
            mode & 0o7777
        )
    })
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

    #[test]
    fn an_empty_variable_is_none() {
        let dir = |run_dir: &str, base: &str| {
            default_among(|name| {
                Some(match name {
                    "LEVY_RUN_DIR" => run_dir.into(),
                    _ => base.into(),
                })
            })
        };
        assert_eq!(dir("/a", "/b"), Path::new("/a"));
        assert_eq!(dir("", "/b"), Path::new("/b/levy"));
        assert!(dir("", "").is_absolute());
        assert_eq!(launch_dir::base_among(|_| Some("".into())), Path::new("/tmp"));
    }

    #[test]
    fn a_directory_of_another_user_is_no_place_to_trust() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("levy");
        assert!(!is_strangers(&dir) && trust(&dir).is_err(), "there is none");
        make_dir(&dir).unwrap();
        trust(&dir).unwrap();
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        assert!(is_strangers(&dir));
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        if std::os::unix::fs::chown(&dir, Some(65_534), None).is_ok() {
            assert!(is_strangers(&dir) && make_dir(&dir).is_err());
        }
    }

    #[test]
    fn a_run_directory_that_other_users_may_change_is_refused() {
        const OWN: u32 = 1000;
        for (owner, mode) in [(OWN, 0o700), (OWN, 0o755), (0, 0o755), (0, 0o1777)] {
            assert_eq!(distrust(owner, mode, OWN), None, "{owner} {mode:o}");
        }
        for mode in [0o770, 0o707, 0o777, 0o1777, 0o2775] {
            let reason = distrust(OWN, mode, OWN).unwrap();
            assert!(reason.contains("chmod go-w"), "{mode:o}: {reason}");
        }
        assert!(distrust(0, 0o777, OWN).is_some());
        assert!(distrust(1001, 0o700, OWN).unwrap().contains("another user"));
        assert!(
            distrust(OWN, 0o700, 0).is_some(),
            "root does not trust a user's either"
        );
    }
}
