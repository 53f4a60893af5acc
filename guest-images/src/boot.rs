//! What a guest boots: a kernel and the initramfs that fits it, kept together.

use std::fs;
use std::path::{Path, PathBuf};

use crate::agent::AGENT;
use crate::cache::{Cache, Key, Kind};
use crate::debian::Archive;
use crate::initramfs::{self, Parts};
use crate::kernel::{Flavour, Kernel};
use crate::{Error, Result, vmlinux};

/// Raised when the recipe changes in a way that its inputs do not show.
const RECIPE: &str = "boot 3";

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
                needs_mib: 128,
            },
            &key,
            |aside| {
                cache.say(&format!("building the initramfs for {}", kernel.release()));
                initramfs::write(&cpio, &aside.join("initramfs"))?;
                write_kernel(cache, &kernel, aside)?;
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

    /// The kernel unpacked, an ELF file, which boots sooner; `None` where an older version built the entry, or where
    /// this version cannot unpack the bzImage.
    pub fn vmlinux(&self) -> Option<PathBuf> {
        let path = self.dir.join("vmlinux");
        path.is_file().then_some(path)
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

/// The bzImage and, beside it, what is packed in it.
fn write_kernel(cache: &Cache, kernel: &Kernel, aside: &Path) -> Result<()> {
    let image = kernel.image();
    let bzimage = fs::read(&image).map_err(Error::file("read", &image))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = aside.join(name);
        fs::write(&path, bytes).map_err(Error::file("write", &path))
    };
    write("bzImage", &bzimage)?;
    match vmlinux::unpack(&bzimage) {
        Ok(vmlinux) => write("vmlinux", &vmlinux),
        Err(reason) => {
            let release = kernel.release();
            cache.say(&format!(
                "guests will unpack kernel {release} themselves: {reason}"
            ));
            Ok(())
        }
    }
}

fn name(flavour: Flavour) -> String {
    format!("boot-{}", flavour.name())
}
