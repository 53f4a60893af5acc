//! A QEMU that can emulate a machine with nested paging: version 10 or later.
//!
//! QEMU 7.2, which Debian 12 installs, corrupts the guests of an emulated KVM host (flags after `cmpxchg16b`).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use guest_images::debian::{Archive, Depth, Prefer, Request};

use super::mend::mended;

/// First major version that is sound.
const OLDEST: u32 = 10;

/// How to start a QEMU.
#[derive(Debug, Clone)]
pub(crate) struct Qemu {
    program: PathBuf,
    /// What comes before the first option: the loader's arguments and where firmware lies.
    first: Vec<OsString>,
    /// For people, as in "QEMU 10.0.2".
    pub(crate) version: String,
}

impl Qemu {
    /// The installed QEMU if it is recent enough, else one unpacked from Debian's backports.
    pub(crate) fn find(archive: &Archive) -> Result<Self> {
        if let Some(installed) = Self::probe("qemu-system-x86_64".into(), Vec::new())
            && installed.is_sound()
        {
            return Ok(installed);
        }
        let tree = archive.tree(&Request {
            name: "qemu",
            packages: &["qemu-system-x86"],
            prefer: Prefer::Backports,
            depth: Depth::WithDependencies,
        })?;
        Self::unpacked(&tree)
    }

    /// A command that starts this QEMU; options follow.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.first);
        command
    }

    /// Program and first arguments.
    pub(crate) fn words(&self) -> Result<Vec<String>> {
        let all = std::iter::once(self.program.as_os_str()).chain(self.first.iter().map(OsString::as_os_str));
        all.map(|word| Ok(word.to_str().context("the path of QEMU is not UTF-8")?.to_owned()))
            .collect()
    }

    /// The packages' own loader and libraries, so that it matters not what this machine has.
    fn unpacked(tree: &Path) -> Result<Self> {
        let loader = [
            "lib64/ld-linux-x86-64.so.2",
            "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        ]
        .iter()
        .map(|path| tree.join(path))
        .find(|path| path.is_file())
        .with_context(|| format!("no dynamic loader below {}", tree.display()))?;
        let mut libraries = OsString::new();
        for part in ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"] {
            libraries.push(tree.join(part));
            libraries.push(":");
        }
        let mut first: Vec<OsString> = vec!["--library-path".into(), libraries];
        first.push(mended(&tree.join("usr/bin/qemu-system-x86_64"))?.into());
        for part in ["usr/share/seabios", "usr/share/qemu", "usr/lib/ipxe/qemu"] {
            first.push("-L".into());
            first.push(tree.join(part).into());
        }
        let qemu = Self::probe(loader, first)
            .with_context(|| format!("the QEMU below {} does not start", tree.display()))?;
        if !qemu.is_sound() {
            bail!(
                "backports offer {}, version {OLDEST} or later is needed",
                qemu.version
            );
        }
        Ok(qemu)
    }

    fn probe(program: PathBuf, first: Vec<OsString>) -> Option<Self> {
        let output = Command::new(&program)
            .args(&first)
            .arg("--version")
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text
            .split_whitespace()
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let version = format!("QEMU {version}");
        output.status.success().then_some(Self {
            program,
            first,
            version,
        })
    }

    fn is_sound(&self) -> bool {
        major(&self.version).is_some_and(|major| major >= OLDEST)
    }
}

fn major(version: &str) -> Option<u32> {
    let digits = version.strip_prefix("QEMU ")?;
    digits.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_are_told_from_sound_ones() {
        assert_eq!(major("QEMU 7.2.19"), Some(7));
        assert_eq!(major("QEMU 10.0.2"), Some(10));
        assert_eq!(major("nonsense"), None);
    }
}
