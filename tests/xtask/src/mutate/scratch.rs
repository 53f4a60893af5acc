//! A copy of the workspace in which the mutants are built.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result};

use crate::committed;

/// The copy and the folder that its builds go to.
pub(super) struct Scratch {
    pub(super) tree: PathBuf,
    pub(super) build: PathBuf,
    pub(super) folder: PathBuf,
}

impl Scratch {
    /// Copies the workspace at `root` to a folder below its own build folder, as it would be committed. What is there
    /// already and has not changed keeps its time, so that cargo builds it once.
    pub(super) fn of(root: &Path) -> Result<Self> {
        let folder = root.join("target/mutate");
        let scratch = Self {
            tree: folder.join("tree"),
            build: folder.join("build"),
            folder,
        };
        let files = committed::files(root, &[])?;
        for file in &files {
            scratch.write(
                file,
                &fs::read(root.join(file)).with_context(|| format!("cannot read {}", file.display()))?,
            )?;
        }
        let known: HashSet<&PathBuf> = files.iter().collect();
        remove_others(&scratch.tree, &scratch.tree, &known)?;
        Ok(scratch)
    }

    /// Writes a file of the copy, unless it holds `bytes` already.
    pub(super) fn write(&self, file: &Path, bytes: &[u8]) -> Result<()> {
        let path = self.tree.join(file);
        if fs::read(&path).is_ok_and(|have| have == bytes) {
            return Ok(());
        }
        let write = || -> io::Result<()> {
            fs::create_dir_all(path.parent().unwrap_or(&self.tree))?;
            fs::write(&path, bytes)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Deletes what an earlier copy left: a file of a module that is gone, or a seed that a failing test wrote down.
fn remove_others(tree: &Path, folder: &Path, known: &HashSet<&PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(tree, &path, known)?;
        } else if path
            .strip_prefix(tree)
            .is_ok_and(|file| !known.contains(&file.to_owned()))
        {
            fs::remove_file(&path).with_context(|| format!("cannot delete {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_is_not_committed_any_more_goes_and_what_did_not_change_stays() {
        let root = tempfile::tempdir().unwrap();
        let git = |args: &[&str]| {
            let done = Command::new("git").current_dir(root.path()).args(args).output();
            assert!(done.unwrap().status.success());
        };
        git(&["init", "-q"]);
        fs::write(root.path().join(".gitignore"), "target\n").unwrap();
        fs::create_dir(root.path().join("src")).unwrap();
        fs::write(root.path().join("src/a.rs"), "a").unwrap();
        let scratch = Scratch::of(root.path()).unwrap();
        let copy = scratch.tree.join("src/a.rs");
        let written = fs::metadata(&copy).unwrap().modified().unwrap();
        scratch.write(Path::new("src/seed"), b"1").unwrap();
        Scratch::of(root.path()).unwrap();
        assert!(!scratch.tree.join("src/seed").exists());
        assert_eq!(fs::metadata(&copy).unwrap().modified().unwrap(), written);
        scratch.write(Path::new("src/a.rs"), b"b").unwrap();
        assert_eq!(fs::read(&copy).unwrap(), b"b");
    }
}
