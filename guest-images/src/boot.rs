//! What a guest boots: a kernel and the initramfs that fits it, kept together.

use std::fs;
use std::path::{Path, PathBuf};

use crate::agent::AGENT;
use crate::cache::{Cache, Key, Kind};
use crate::debian::Archive;
use crate::initramfs::{self, Parts};
use crate::kernel::{Flavour, Kernel};
use crate::{Error, Result};

/// Raised when the recipe changes in a way that its inputs do not show.
const RECIPE: &str = "boot 2";

/// A kernel and its initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    dir: PathBuf,
    release: String,
}

impl Boot {
    /// Builds kernel and initramfs of this flavour, or finds them built.
    ///
    /// # Errors
    /// As [`Kernel::fetch`], and when the kernel lacks a module.
    pub fn build(archive: &Archive, flavour: Flavour) -> Result<Self> {
        let cache = archive.cache();
        let kernel = Kernel::fetch(archive, flavour)?;
        let parts = Parts::gather(archive, &kernel)?;
        let cpio = parts.cpio();
        let key = Key::new(RECIPE).with(kernel.release().as_bytes()).with(&cpio);
        let kind = name(flavour);
        let dir = cache.entry(
            Kind {
                name: &kind,
                needs_mib: 64,
            },
            &key,
            |aside| {
                cache.say(&format!("building the initramfs for {}", kernel.release()));
                initramfs::write(&cpio, &aside.join("initramfs"))?;
                let image = kernel.image();
                fs::copy(&image, aside.join("bzImage")).map_err(Error::file("copy", &image))?;
                let release = aside.join("release");
                fs::write(&release, kernel.release()).map_err(Error::file("write", &release))?;
                let agent = aside.join("agent");
                fs::write(&agent, AGENT).map_err(Error::file("write", &agent))
            },
        )?;
        Self::at(dir)
    }

    /// What was built last for this flavour, if anything; looks only into the cache.
    pub fn latest(cache: &Cache, flavour: Flavour) -> Option<Self> {
        Self::at(cache.latest(&name(flavour))?).ok()
    }

    fn at(dir: PathBuf) -> Result<Self> {
        let path = dir.join("release");
        let release = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        Ok(Self { dir, release })
    }

    /// The bzImage.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("bzImage")
    }

    /// The initramfs, an uncompressed cpio archive.
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs")
    }

    /// True if this agent is the one in the initramfs.
    pub(crate) fn agent_is(&self, agent: &[u8]) -> bool {
        fs::read(self.dir.join("agent")).is_ok_and(|bytes| bytes == agent)
    }

    /// The kernel's release.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The cache entry.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

fn name(flavour: Flavour) -> String {
    format!("boot-{}", flavour.name())
}
