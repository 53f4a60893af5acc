//! A folder outside the workspace in which unpacked libraries find each other.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{directory, run_to_end};
use crate::metadata::Package;

/// The folder, removed when dropped, and where its builds go: that stays, so that the next run is faster.
pub(super) struct Outside {
    folder: TempDir,
    build: PathBuf,
}

impl Outside {
    /// A folder for `packages` with the lock file and the profiles of the workspace at `root`, so that what is tested is
    /// built from the same versions in the same way.
    pub(super) fn new(root: &Path, packages: &[&Package]) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let ours = fs::read_to_string(root.join("Cargo.toml")).context("cannot read Cargo.toml")?;
        let names: Vec<String> = packages.iter().map(|package| directory(package)).collect();
        let write =
            |file, text: &str| fs::write(folder.path().join(file), text).context("cannot write a manifest");
        write("Cargo.toml", &manifest(packages, &names, &ours))?;
        fs::copy(root.join("Cargo.lock"), folder.path().join("Cargo.lock"))
            .context("cannot copy Cargo.lock")?;
        Ok(Self {
            folder,
            build: root.join("target/packaged"),
        })
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs cargo on `package` alone.
    pub(super) fn cargo(&self, package: &Package, args: &[&str]) -> Result<()> {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(self.folder.path()).args(args);
        cargo
            .args(["--package", &package.name])
            .env("CARGO_TARGET_DIR", &self.build);
        run_to_end(&mut cargo)
    }
}

/// A manifest for the unpacked packages, in which each takes the others from its neighbours' folders instead of the
/// registry. `ours` is the workspace's, for its profiles.
fn manifest(packages: &[&Package], directories: &[String], ours: &str) -> String {
    let mut text = format!("[workspace]\nresolver = \"3\"\nmembers = {directories:?}\n\n[patch.crates-io]\n");
    for (package, directory) in packages.iter().zip(directories) {
        let _ = writeln!(text, "{} = {{ path = {directory:?} }}", package.name);
    }
    let profiles = ours
        .find("\n[profile.dev.package")
        .map_or("", |start| &ours[start..]);
    text + profiles
}
