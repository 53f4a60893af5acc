//! Building test programs: cargo says where each one is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::artifact::Artifact;

/// A test program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Program {
    /// The folder of its package, where it has to run.
    pub(super) folder: PathBuf,
    /// Its main source file, below that folder.
    source: PathBuf,
    /// The name of its target.
    pub(super) name: String,
    pub(super) executable: PathBuf,
}

impl Program {
    /// Builds what `cargo test --no-run` builds with `arguments` and returns its programs, those of a package together.
    pub(super) fn build(arguments: &[&str]) -> Result<Vec<Self>> {
        let output = Command::new(env!("CARGO"))
            .args(["test", "--locked", "--no-run"])
            .args(arguments)
            .args(["--message-format", "json-render-diagnostics"])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start cargo")?;
        if !output.status.success() {
            bail!("the tests do not build");
        }
        let mut programs: Vec<_> = output
            .stdout
            .split(|byte| *byte == b'\n')
            .filter_map(Self::parse)
            .collect();
        programs.sort();
        Ok(programs)
    }

    /// A program from a line, unless it tells of something else.
    fn parse(line: &[u8]) -> Option<Self> {
        let message: Artifact = serde_json::from_slice(line).ok()?;
        if !message.profile.test {
            return None;
        }
        let folder = message.manifest_path.parent()?.to_owned();
        let source = message.target.src_path;
        let source = source.strip_prefix(&folder).unwrap_or(&source).to_owned();
        Some(Self {
            folder,
            source,
            name: message.target.name,
            executable: message.executable?,
        })
    }

    /// Whether it belongs to the package in `folder` of the workspace.
    pub(super) fn is_of(&self, folder: &Path) -> bool {
        self.folder.ends_with(folder)
    }

    /// Whether it is a program of tests alone rather than unit tests of a library or another program.
    pub(super) fn is_integration(&self) -> bool {
        self.source.starts_with("tests")
    }
}

impl std::fmt::Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let package = self.folder.file_name().unwrap_or_default();
        write!(f, "{}: {}", package.display(), self.source.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(test: bool) -> String {
        format!(
            r#"{{"reason": "compiler-artifact", "manifest_path": "/w/page-share/Cargo.toml",
                 "package_id": "path+file:///w/page-share#0.1.0", "executable": "/w/target/debug/deps/domain-1",
                 "profile": {{"opt_level": "0", "test": {test}}},
                 "target": {{"kind": ["test"], "name": "domain", "src_path": "/w/page-share/tests/domain.rs"}}}}"#
        )
    }

    #[test]
    fn test_programs_are_told_from_other_messages() {
        let program = Program::parse(message(true).as_bytes()).unwrap();
        assert_eq!(program.to_string(), "page-share: tests/domain.rs");
        assert!(program.is_of(Path::new("page-share")) && program.is_integration());
        assert_eq!(Program::parse(message(false).as_bytes()), None);
        assert_eq!(
            Program::parse(br#"{"reason": "build-finished", "success": true}"#),
            None
        );
    }
}
