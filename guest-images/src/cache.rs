//! The cache: entries are built aside, synced and renamed into place, one builder at a time.
//!
//! ```text
//! CACHE/KIND/KEY/...       an entry, complete or absent
//! CACHE/KIND/latest        the key of the entry that was asked for last (a symbolic link)
//! CACHE/KIND/.lock         held while an entry of this kind is built
//! CACHE/KIND/.building/    the entry under construction; the next process to take the lock removes leftovers
//! ```

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use crate::privilege::remove_tree;
use crate::{Error, Result};

const MIB: u64 = 1 << 20;

/// Entries of a kind that are kept when a new one is built.
const KEEP: usize = 4;

/// Where built things are kept, and whom to tell what is being done.
#[derive(Clone)]
pub struct Cache {
    root: PathBuf,
    progress: Arc<dyn Fn(&str) + Send + Sync>,
}

/// What an entry is made of: equal inputs give the same entry.
#[derive(Debug, Clone)]
pub struct Key {
    hash: Sha256,
}

/// A kind of entries, as in "kernel" or "disk".
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind<'a> {
    /// The directory below the cache.
    pub(crate) name: &'a str,
    /// MiB that building one may need.
    pub(crate) needs_mib: u64,
}

impl Cache {
    /// The user's cache: `$LEVY_CACHE`, else `$XDG_CACHE_HOME/levy`, else `~/.cache/levy`. Creates nothing yet.
    ///
    /// # Errors
    /// None of the three variables is set.
    pub fn of_user() -> Result<Self> {
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let root = root_from(&var).ok_or(Error::NoCacheDir)?;
        Self::at(root)
    }

    /// A cache in a directory of the caller's choice. Creates nothing yet.
    ///
    /// # Errors
    /// The path is relative and the working directory is gone.
    pub fn at(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let root = std::path::absolute(&root).map_err(Error::file("resolve", &root))?;
        Ok(Self {
            root,
            progress: Arc::new(|_| {}),
        })
    }

    /// Calls `tell` with a line for people at each step that may take more than a moment.
    pub fn on_progress(mut self, tell: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.progress = Arc::new(tell);
        self
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Passes `line` to the callback that the caller gave for progress.
    pub(crate) fn say(&self, line: &str) {
        (self.progress)(line);
    }

    /// The entry asked for last of this kind, without looking whether its inputs have changed.
    pub(crate) fn latest(&self, kind: &str) -> Option<PathBuf> {
        fs::canonicalize(self.root.join(kind).join("latest")).ok()
    }

    /// The entry of `kind` with this `key`, built by `build` (into an empty directory it is given) if absent.
    ///
    /// # Errors
    /// Those of `build`, and file errors; then there is no entry and nothing of it is left.
    pub(crate) fn entry(
        &self,
        kind: Kind<'_>,
        key: &Key,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let home = self.root.join(kind.name);
        let name = key.name();
        let place = home.join(&name);
        if !place.is_dir() {
            let _lock = self.lock(kind)?;
            // Another process may have built it while we waited.
            if !place.is_dir() {
                self.need_space(kind)?;
                build_aside(&home, &place, build)?;
                prune(&home);
            }
        }
        point_latest(&home, &name)?;
        mark_used(&place);
        Ok(place)
    }

    /// Waits until this process alone may change entries of `kind`.
    pub(crate) fn lock(&self, kind: Kind<'_>) -> Result<File> {
        let home = self.root.join(kind.name);
        fs::create_dir_all(&home).map_err(Error::file("create", &home))?;
        let path = home.join(".lock");
        let file = File::create(&path).map_err(Error::file("create", &path))?;
        if file.try_lock().is_err() {
            self.say(&format!(
                "waiting for another process that builds {}",
                home.display()
            ));
            file.lock().map_err(Error::file("lock", &path))?;
        }
        Ok(file)
    }

    fn need_space(&self, kind: Kind<'_>) -> Result<()> {
        let path = self.root.join(kind.name);
        let stat = rustix::fs::statvfs(&path)
            .map_err(|errno| Error::file("ask for the free space of", &path)(errno.into()))?;
        let free_mib = stat.f_bavail.saturating_mul(stat.f_frsize) / MIB;
        if free_mib < kind.needs_mib {
            let what = format!("a {}", kind.name);
            return Err(Error::NoSpace {
                what,
                path,
                needed_mib: kind.needs_mib,
                free_mib,
            });
        }
        Ok(())
    }
}

impl Key {
    /// A key of nothing but the recipe's name and number; raise the number when the recipe changes.
    pub fn new(recipe: &str) -> Self {
        Self { hash: Sha256::new() }.with(recipe.as_bytes())
    }

    /// The key with one more input. Inputs are delimited: ("ab", "c") differs from ("a", "bc").
    pub fn with(mut self, input: &[u8]) -> Self {
        self.hash.update((input.len() as u64).to_le_bytes());
        self.hash.update(input);
        self
    }

    /// The first 16 digits are enough to tell some hundreds of entries apart.
    fn name(&self) -> String {
        let mut digits = hex(self.hash.clone().finalize().as_slice());
        digits.truncate(16);
        digits
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn root_from(var: &dyn Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    if let Some(dir) = var("LEVY_CACHE") {
        return Some(dir.into());
    }
    if let Some(dir) = var("XDG_CACHE_HOME") {
        return Some(Path::new(&dir).join("levy"));
    }
    var("HOME").map(|home| Path::new(&home).join(".cache/levy"))
}

fn build_aside(home: &Path, place: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let aside = home.join(".building");
    remove_tree(&aside)?;
    fs::create_dir(&aside).map_err(Error::file("create", &aside))?;
    let built = build(&aside)
        .and_then(|()| sync(&aside))
        .and_then(|()| fs::rename(&aside, place).map_err(Error::file("rename", &aside)))
        .and_then(|()| sync_dir(home));
    if built.is_err() {
        // The first error is the one worth telling.
        let _ = remove_tree(&aside);
    }
    built
}

/// One syncfs instead of thousands of fsyncs: package trees have many small files.
fn sync(path: &Path) -> Result<()> {
    let dir = File::open(path).map_err(Error::file("open", path))?;
    rustix::fs::syncfs(&dir).map_err(|errno| Error::file("write to disk", path)(errno.into()))
}

fn sync_dir(path: &Path) -> Result<()> {
    let dir = File::open(path).map_err(Error::file("open", path))?;
    dir.sync_all().map_err(Error::file("write to disk", path))
}

/// The time of the directory says when its entry was asked for last.
fn mark_used(place: &Path) {
    // In a read-only cache nothing is pruned either.
    let _ = File::open(place).and_then(|dir| dir.set_modified(SystemTime::now()));
}

/// Removes all but the [`KEEP`] entries asked for last. A guest that has a file of an older one open keeps it.
fn prune(home: &Path) {
    let Ok(entries) = fs::read_dir(home) else { return };
    let of_entry = |entry: fs::DirEntry| {
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let metadata = entry
            .metadata()
            .ok()
            .filter(|metadata| metadata.is_dir() && !hidden)?;
        Some((metadata.modified().ok()?, entry.path()))
    };
    let mut entries: Vec<_> = entries.flatten().filter_map(of_entry).collect();
    entries.sort();
    let excess = entries.len().saturating_sub(KEEP);
    for (_, path) in &entries[..excess] {
        // What cannot be removed now is tried again after the next build.
        let _ = fs::remove_dir_all(path);
    }
}

fn point_latest(home: &Path, name: &str) -> Result<()> {
    let latest = home.join("latest");
    if fs::read_link(&latest).is_ok_and(|now| now.as_os_str() == OsStr::new(name)) {
        return Ok(());
    }
    // A cache on a read-only disk serves what it has; it only cannot move the pointer.
    static TURN: AtomicU32 = AtomicU32::new(0);
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let aside = home.join(format!(".latest.{}.{turn}", std::process::id()));
    let _ = fs::remove_file(&aside);
    match symlink(name, &aside) {
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => return Ok(()),
        other => other.map_err(Error::file("create", &aside))?,
    }
    fs::rename(&aside, &latest).map_err(Error::file("rename", &aside))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind<'static> = Kind {
        name: "thing",
        needs_mib: 1,
    };

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_second_build_does_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let key = Key::new("thing 1");
        let write = |aside: &Path| fs::write(aside.join("file"), "x").map_err(Error::file("write", aside));
        let first = cache.entry(KIND, &key, write).unwrap();
        let second = cache.entry(KIND, &key, |_| unreachable!("built twice")).unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read_to_string(first.join("file")).unwrap(), "x");
        assert_eq!(
            cache.latest(KIND.name).unwrap(),
            fs::canonicalize(&first).unwrap()
        );
    }

    #[test]
    fn a_failed_build_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let result = cache.entry(KIND, &Key::new("thing 1"), |aside| {
            fs::write(aside.join("half"), "x").unwrap();
            Err(Error::NoMirror)
        });
        assert!(matches!(result, Err(Error::NoMirror)));
        assert_eq!(names(&dir.path().join("thing")), [".lock"]);
    }

    #[test]
    fn a_killed_build_is_swept_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let left = dir.path().join("thing/.building");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("half"), "x").unwrap();
        let entry = cache.entry(KIND, &Key::new("thing 1"), |_| Ok(())).unwrap();
        assert_eq!(names(&entry), Vec::<String>::new());
    }

    #[test]
    fn only_the_entries_used_last_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let build = |name: &str| cache.entry(KIND, &Key::new(name), |_| Ok(())).unwrap();
        let first = build("first");
        let second = build("second");
        for name in ["third", "fourth"] {
            build(name);
        }
        assert!(build("first").exists());
        build("fifth");
        assert!(
            first.exists() && !second.exists(),
            "the second was used longest ago"
        );
    }

    #[test]
    fn builders_at_once_build_once() {
        let dir = tempfile::tempdir().unwrap();
        let built = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let cache = Cache::at(dir.path()).unwrap();
                    cache
                        .entry(KIND, &Key::new("thing 1"), |_| {
                            built.fetch_add(1, Ordering::Relaxed);
                            Ok(())
                        })
                        .unwrap();
                });
            }
        });
        assert_eq!(built.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn too_little_space_is_told_before_building() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let kind = Kind {
            name: "thing",
            needs_mib: u64::MAX,
        };
        let error = cache
            .entry(kind, &Key::new("thing 1"), |_| unreachable!())
            .unwrap_err();
        assert!(error.to_string().contains("LEVY_CACHE"), "{error}");
    }

    #[test]
    fn inputs_are_delimited() {
        let one = Key::new("r").with(b"ab").with(b"c").name();
        let other = Key::new("r").with(b"a").with(b"bc").name();
        assert_ne!(one, other);
        assert_eq!(one.len(), 16);
    }

    #[test]
    fn the_cache_directory_follows_the_variables_in_order() {
        let root = |set: &[(&str, &str)]| {
            root_from(&|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
        };
        let all = [("LEVY_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")];
        assert_eq!(root(&all), Some("/a".into()));
        assert_eq!(root(&all[1..]), Some("/b/levy".into()));
        assert_eq!(root(&all[2..]), Some("/c/.cache/levy".into()));
        assert_eq!(root(&[]), None);
    }
}
