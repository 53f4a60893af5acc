//! The files of a repository that are or would be committed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Those below `root`, relative to it, that `patterns` name; all without a pattern.
pub(crate) fn files(root: &Path, patterns: &[&str]) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .current_dir(root)
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
            "--",
        ])
        .args(patterns)
        .output()
        .context("git is not installed: run `apt-get install git` as root")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
    let names = text.split('\0').filter(|name| !name.is_empty());
    Ok(names
        .map(PathBuf::from)
        .filter(|path| root.join(path).is_file())
        .collect())
}
