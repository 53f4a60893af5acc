//! Whether the libraries build with the oldest Rust that their manifests promise.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result};

use crate::metadata::Metadata;

/// Builds the libraries with the toolchains of their `rust-version`. One that is not installed is a skip that can be
/// seen, because nothing here installs toolchains. Even then clippy refuses library functions that are newer.
pub(super) fn complaints(metadata: &Metadata) -> Result<Vec<String>> {
    let mut versions = BTreeMap::<&str, Vec<&str>>::new();
    let mut complaints = Vec::new();
    for package in metadata.published() {
        match &package.rust_version {
            Some(version) => versions.entry(version).or_default().push(&package.name),
            None => complaints.push(format!("{} names no rust-version", package.name)),
        }
    }
    let installed = installed();
    for (version, packages) in versions {
        let names = packages.join(", ");
        match installed.iter().find(|toolchain| is_of(toolchain, version)) {
            Some(toolchain) if !builds(metadata, toolchain, &packages)? => {
                complaints.push(format!("Rust {version} does not build {names}"));
            }
            Some(_) => eprintln!("  {names}: Rust {version}"),
            None => eprintln!(
                "  SKIP: {names}: Rust {version} is not installed \
                 (`rustup toolchain install {version} --profile minimal`)"
            ),
        }
    }
    Ok(complaints)
}

/// The toolchains that rustup has; none without rustup.
fn installed() -> Vec<String> {
    let output = Command::new("rustup").args(["toolchain", "list"]).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines()
        .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
        .collect()
}

/// Whether a toolchain, such as `1.88-x86_64-unknown-linux-gnu` or `1.88.0`, is of `version`, such as `1.88`.
fn is_of(toolchain: &str, version: &str) -> bool {
    let rest = toolchain.strip_prefix(version);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
}

/// Builds in a folder of its own: the ordinary one is of another compiler.
fn builds(metadata: &Metadata, toolchain: &str, packages: &[&str]) -> Result<bool> {
    let folder = metadata.root().join("target/rust-version");
    let mut cargo = Command::new("rustup");
    cargo.args(["run", toolchain, "cargo", "check", "--quiet", "--locked", "--lib"]);
    cargo.arg("--target-dir").arg(folder);
    for package in packages {
        cargo.args(["--package", package]);
    }
    let status = cargo.status().context("cannot start rustup")?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::is_of;

    #[test]
    fn a_version_is_found_under_the_names_that_rustup_gives_it() {
        assert!(
            is_of("1.88-x86_64-unknown-linux-gnu", "1.88")
                && is_of("1.88.0", "1.88")
                && is_of("1.88", "1.88")
        );
        assert!(!is_of("1.880-x", "1.88") && !is_of("stable-x86_64-unknown-linux-gnu", "1.88"));
    }
}
