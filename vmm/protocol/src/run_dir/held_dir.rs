//! A directory that lives as long as the process that made it.
//!
//! Its maker holds a lock on the directory itself, which the kernel lets go when the process ends, however it ends.
//! A process that can take the lock has found what a dead process left. Process numbers say less: another container
//! that sees the same directory gives its processes the same numbers, and sees none of ours.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

/// Names that are tried.
const ATTEMPTS: u32 = 100;

/// A directory whose lock this process holds. Dropping it lets the lock go and leaves the directory.
#[derive(Debug)]
pub struct HeldDir {
    path: PathBuf,
    /// Closed on exec: a child does not hold what its parent made.
    _lock: File,
}

impl HeldDir {
    /// Makes a directory below `base`, named `prefix` and this process's number, with something behind it where that is
    /// taken.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(base: &Path, prefix: &str, mode: u32) -> io::Result<Self> {
        let pid = std::process::id();
        for attempt in 0..ATTEMPTS {
            let path = base.join(match attempt {
                0 => format!("{prefix}{pid}"),
                _ => format!("{prefix}{pid}.{attempt}"),
            });
            match DirBuilder::new().mode(mode).create(&path) {
                // A process that clears away may have found it before its lock was taken: then it is gone.
                Ok(()) => match Self::take(path) {
                    Some(held) => return Ok(held),
                    None => continue,
                },
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Takes what processes that are gone left below `base` under such names. Empty where nothing can be read; what
    /// belongs to other users is left out where it may not be opened.
    pub fn abandoned(base: &Path, prefix: &str) -> Vec<Self> {
        let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
        entries
            .filter(|entry| is_ours(entry.file_name().to_str(), prefix))
            .filter_map(|entry| Self::take(entry.path()))
            .collect()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory at `path`, if no process holds it and it is still there once it is held.
    fn take(path: PathBuf) -> Option<Self> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let lock = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(&path)
            .ok()?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
        let (held, there) = (lock.metadata().ok()?, std::fs::symlink_metadata(&path).ok()?);
        let same = (held.dev(), held.ino()) == (there.dev(), there.ino());
        same.then_some(Self { path, _lock: lock })
    }
}

/// `prefix`, a process number, and possibly `.` and an attempt.
fn is_ours(name: Option<&str>, prefix: &str) -> bool {
    let Some(rest) = name.and_then(|name| name.strip_prefix(prefix)) else {
        return false;
    };
    let mut numbers = rest.splitn(2, '.');
    numbers.all(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    const PREFIX: &str = "held-";

    /// What was just let go. Another test's child has a copy of every lock until its exec, so it may take a moment.
    fn let_go(base: &Path) -> Vec<HeldDir> {
        let asked = std::time::Instant::now();
        loop {
            let found = HeldDir::abandoned(base, PREFIX);
            if !found.is_empty() || asked.elapsed().as_secs() >= 10 {
                return found;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_held_directory_is_nobody_elses_and_one_that_was_let_go_is_anybodys() {
        let base = tempfile::tempdir().unwrap();
        let one = HeldDir::create(base.path(), PREFIX, 0o700).unwrap();
        let other = HeldDir::create(base.path(), PREFIX, 0o700).unwrap();
        assert_ne!(one.path(), other.path());
        assert!(HeldDir::abandoned(base.path(), PREFIX).is_empty());
        let path = one.path().to_owned();
        drop(one);
        let found = let_go(base.path());
        assert_eq!(found.iter().map(HeldDir::path).collect::<Vec<_>>(), [path]);
        // Who clears away holds it too: no second one does the same.
        assert!(HeldDir::abandoned(base.path(), PREFIX).is_empty());
    }

    /// The number in the name is not a process of this machine, as that of a holder in another container.
    #[test]
    fn a_holder_whose_number_means_nothing_here_keeps_its_directory_until_it_is_killed() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join(format!("{PREFIX}4194305"));
        std::fs::create_dir(&path).unwrap();
        // The shell becomes `sleep`, so that one process alone has the lock.
        let mut holder = Command::new("sh")
            .args(["-c", "exec 9<\"$1\"; flock 9; echo held; exec sleep 600", "sh"])
            .arg(&path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 4];
        io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut said).unwrap();
        assert!(HeldDir::abandoned(base.path(), PREFIX).is_empty());
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(let_go(base.path()).len(), 1);
    }

    #[test]
    fn a_child_holds_nothing() {
        let base = tempfile::tempdir().unwrap();
        let held = HeldDir::create(base.path(), PREFIX, 0o700).unwrap();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        drop(held);
        let found = let_go(base.path()).len();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, 1);
    }

    #[test]
    fn other_names_links_and_files_are_left_alone() {
        let base = tempfile::tempdir().unwrap();
        for name in ["held-", "held-x", "held-1.", "held-1.x", "held-1.2.3", "other-1"] {
            std::fs::create_dir(base.path().join(name)).unwrap();
        }
        std::fs::write(base.path().join("held-1"), "").unwrap();
        std::os::unix::fs::symlink(base.path().join("other-1"), base.path().join("held-2")).unwrap();
        assert!(HeldDir::abandoned(base.path(), PREFIX).is_empty());
        assert!(HeldDir::abandoned(Path::new("/no/such/place"), PREFIX).is_empty());
        std::fs::create_dir(base.path().join("held-3.1")).unwrap();
        assert_eq!(HeldDir::abandoned(base.path(), PREFIX).len(), 1);
        assert!(HeldDir::create(Path::new("/no/such/place"), PREFIX, 0o700).is_err());
    }
}
