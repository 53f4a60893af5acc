//! What cargo knows of the workspace and everything it depends on.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// `cargo metadata`, the part that is looked at.
#[derive(Deserialize)]
pub(super) struct Metadata {
    packages: Vec<Package>,
    workspace_members: HashSet<String>,
    workspace_root: PathBuf,
}

/// A package.
#[derive(Deserialize)]
pub(super) struct Package {
    id: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) license: Option<String>,
    /// Where it comes from; nothing for our own.
    pub(super) source: Option<String>,
    pub(super) dependencies: Vec<Dependency>,
}

/// What a manifest asks for.
#[derive(Deserialize)]
pub(super) struct Dependency {
    pub(super) name: String,
    /// The version requirement.
    pub(super) req: String,
    /// Nothing, "dev" or "build".
    pub(super) kind: Option<String>,
    /// Nothing for our own.
    pub(super) source: Option<String>,
}

impl Metadata {
    /// Asks cargo; fails too if the lock file does not fit the manifests.
    pub(super) fn read() -> Result<Self> {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--locked"])
            .output()
            .context("cannot start cargo")?;
        if !output.status.success() {
            bail!(
                "cargo metadata failed: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        serde_json::from_slice(&output.stdout).context("cannot understand cargo metadata")
    }

    pub(super) fn root(&self) -> &Path {
        &self.workspace_root
    }

    /// Our own packages.
    pub(super) fn ours(&self) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(|package| self.workspace_members.contains(&package.id))
    }

    /// The packages of others, exactly one entry per version.
    pub(super) fn others(&self) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(|package| !self.workspace_members.contains(&package.id))
    }
}
