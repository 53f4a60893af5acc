//! What cargo knows of the workspace and everything it depends on.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// `cargo metadata`, the part that is looked at.
#[derive(Deserialize)]
pub(crate) struct Metadata {
    packages: Vec<Package>,
    workspace_members: HashSet<String>,
    workspace_root: PathBuf,
}

/// A package.
#[derive(Deserialize)]
pub(crate) struct Package {
    id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    /// The oldest Rust that builds it.
    pub(crate) rust_version: Option<String>,
    /// The registries it may be published in: nothing said is any, an empty list none.
    publish: Option<Vec<String>>,
    /// Where it comes from; nothing for our own.
    pub(crate) source: Option<String>,
    pub(crate) dependencies: Vec<Dependency>,
}

/// What a manifest asks for.
#[derive(Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// The version requirement.
    pub(crate) req: String,
    /// Nothing, "dev" or "build".
    pub(crate) kind: Option<String>,
    /// Nothing for our own.
    pub(crate) source: Option<String>,
}

impl Metadata {
    /// Asks cargo; fails too if the lock file does not fit the manifests.
    pub(crate) fn read() -> Result<Self> {
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

    pub(crate) fn root(&self) -> &Path {
        &self.workspace_root
    }

    /// Our own packages.
    pub(crate) fn ours(&self) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(|package| self.workspace_members.contains(&package.id))
    }

    /// Those of our packages that are for others to use.
    pub(crate) fn published(&self) -> impl Iterator<Item = &Package> {
        self.ours().filter(|package| package.publish.is_none())
    }

    /// The packages of others, exactly one entry per version.
    pub(crate) fn others(&self) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(|package| !self.workspace_members.contains(&package.id))
    }
}
