//! What the nested host and the guests need from packages: QEMU and cached images.

use std::path::Path;
use std::process::Command;

use guest_images::Cache;

use super::finding::Finding;
use super::host;

/// First QEMU whose emulation of a KVM host is sound.
const OLDEST_QEMU: u32 = 10;

/// What images and packages take together.
const ROOM_MIB: u64 = 4096;

pub(super) fn qemu() -> Finding {
    const NAME: &str = "qemu";
    let fetched = Cache::of_user().is_ok_and(|cache| cache.root().join("qemu").is_dir());
    let installed = installed_qemu();
    match &installed {
        Some((major, version)) if *major >= OLDEST_QEMU => {
            Finding::good(NAME, format!("QEMU {version} installed"))
        }
        _ if fetched => Finding::good(NAME, "a QEMU of its own in the cache"),
        Some((_, version)) => Finding::advice(
            NAME,
            format!("QEMU {version} installed, which corrupts the guests of an emulated host"),
            "only needed for the nested host and benches: `cargo xtask nested` fetches version 10 by itself",
        ),
        None => Finding::advice(
            NAME,
            "not installed",
            "only needed for the nested host and benches: `cargo xtask nested` fetches version 10 by itself",
        ),
    }
}

pub(super) fn images() -> Finding {
    const NAME: &str = "images";
    let cache = match Cache::of_user() {
        Ok(cache) => cache,
        Err(error) => return Finding::problem(NAME, "no place for the image cache", error.to_string()),
    };
    let root = cache.root();
    let kinds = entries(root);
    let found = format!(
        "cache {}: {}",
        root.display(),
        if kinds.is_empty() {
            "empty".into()
        } else {
            kinds.join(", ")
        }
    );
    match host::room(root) {
        Some(mib) if mib < ROOM_MIB => Finding::advice(
            NAME,
            format!("{found}; {mib} MiB free"),
            format!(
                "images and packages take up to {ROOM_MIB} MiB: free some or set LEVY_CACHE to another disk"
            ),
        ),
        _ if kinds.is_empty() => Finding::advice(
            NAME,
            found,
            "the first `levy run` or `cargo xtask demo` builds them from Debian packages",
        ),
        _ => Finding::good(NAME, found),
    }
}

/// The kinds of entries in the cache that hold at least one.
fn entries(root: &Path) -> Vec<String> {
    let Ok(kinds) = std::fs::read_dir(root) else {
        return Vec::new();
    };
    let mut names: Vec<_> = kinds
        .filter_map(Result::ok)
        .filter(|kind| kind.path().join("latest").exists())
        .filter_map(|kind| kind.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Major version and whole version, from "QEMU emulator version 10.0.2 (Debian ...)".
fn installed_qemu() -> Option<(u32, String)> {
    let output = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let major = version.split('.').next()?.parse().ok()?;
    Some((major, version.to_owned()))
}
