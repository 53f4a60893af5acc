//! What a real guest needs, built before anything is started: `levy` itself, a kernel with its initramfs, a disk.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use guest_images::{Boot, Cache, Disk, Flavour, Images};

/// Everything a real guest needs.
pub(crate) struct GuestSystem {
    levy: PathBuf,
    images: Images,
}

impl GuestSystem {
    /// Builds what is not built yet and tells what it does on stderr.
    pub(crate) fn prepare() -> Result<Self> {
        let cache = Cache::of_user()?.on_progress(|line| eprintln!("images: {line}"));
        Ok(Self {
            images: Images::ready(&cache, Flavour::default())?,
            levy: build_levy()?,
        })
    }

    /// Builds a further kernel with its initramfs, for tests that ask for it by its flavour.
    pub(crate) fn also_kernel(flavour: Flavour) -> Result<()> {
        let cache = Cache::of_user()?.on_progress(|line| eprintln!("images: {line}"));
        Images::ready(&cache, flavour)?;
        Ok(())
    }

    /// The `levy` program, built for release.
    pub(crate) fn levy(&self) -> &PathBuf {
        &self.levy
    }

    /// Kernel and initramfs.
    pub(crate) fn boot(&self) -> &Boot {
        &self.images.boot
    }

    /// The Debian root disk.
    pub(crate) fn disk(&self) -> &Disk {
        &self.images.disk
    }

    /// What the tests find it by.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        vec![
            ("LEVY_TEST_BINARY".into(), self.levy.display().to_string()),
            ("LEVY_TEST_DISK".into(), self.disk().image().display().to_string()),
        ]
    }
}

/// Emulated hosts are slow enough; `levy` is always built for release there.
fn build_levy() -> Result<PathBuf> {
    eprintln!("building levy");
    release_binary("levy", "levy")
}

/// Builds a binary of a package for release and says where it is.
pub(crate) fn release_binary(package: &str, binary: &str) -> Result<PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args([
            "build",
            "--locked",
            "--release",
            "--package",
            package,
            "--bin",
            binary,
        ])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("{binary} does not build");
    }
    let messages = output.stdout.split(|byte| *byte == b'\n');
    let executable = messages
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == binary)
        .filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .next_back();
    executable.with_context(|| format!("cargo built {binary} but does not say where it is"))
}
