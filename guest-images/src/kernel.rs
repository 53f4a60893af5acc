//! Stock Debian kernels: the image to boot and its modules, unpacked and never changed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::debian::{Archive, Depth, Prefer, Request};
use crate::{Cache, Error, Result};

/// Which of Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flavour {
    /// 6.12 for clouds: the default guest kernel (virtio, no drivers of real hardware).
    #[default]
    Cloud612,
    /// 6.1 for clouds: bookworm's first kernel.
    Cloud61,
    /// 6.12 with everything, for an emulated host (9p, kvm).
    Full612,
}

impl Flavour {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cloud612, Self::Cloud61, Self::Full612];

    /// The name on the command line and in the cache.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cloud612 => "6.12-cloud",
            Self::Cloud61 => "6.1-cloud",
            Self::Full612 => "6.12",
        }
    }

    /// The flavour called `name` on the command line.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|flavour| flavour.name() == name)
    }

    /// The package that always depends on the newest build.
    fn package(self) -> &'static str {
        match self {
            Self::Cloud612 => "linux-image-6.12-cloud-amd64",
            Self::Cloud61 => "linux-image-cloud-amd64",
            Self::Full612 => "linux-image-6.12-amd64",
        }
    }

    fn entry_name(self) -> String {
        format!("kernel-{}", self.name())
    }
}

/// An unpacked kernel package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    dir: PathBuf,
    release: String,
}

impl Kernel {
    /// The newest kernel of this flavour, from the archive or the cache.
    ///
    /// # Errors
    /// The archive does not have it or a download fails.
    pub fn fetch(archive: &Archive, flavour: Flavour) -> Result<Self> {
        let name = flavour.entry_name();
        let request = Request {
            name: &name,
            packages: &[flavour.package()],
            prefer: Prefer::Stable,
            depth: Depth::WithDependencies,
        };
        let mut packages = archive.resolve(&request)?;
        // Of all it depends on only the build itself: linux-image-RELEASE, not its empty umbrella package.
        packages
            .retain(|package| package.name.starts_with("linux-image-") && package.name != flavour.package());
        Self::at(archive.tree_of(&name, &packages)?)
    }

    /// The kernel of this flavour fetched last, if any; looks only into the cache.
    pub fn latest(cache: &Cache, flavour: Flavour) -> Option<Self> {
        Self::at(cache.latest(&flavour.entry_name())?).ok()
    }

    /// The kernel in an unpacked package tree.
    ///
    /// # Errors
    /// There is none.
    pub fn at(dir: PathBuf) -> Result<Self> {
        let boot = dir.join("boot");
        let files = fs::read_dir(&boot).map_err(Error::file("read", &boot))?;
        let release = files
            .filter_map(|file| file.ok()?.file_name().into_string().ok())
            .find_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
            .ok_or_else(|| Error::Missing {
                what: "vmlinuz-RELEASE".to_owned(),
                place: boot.display().to_string(),
            })?;
        Ok(Self { dir, release })
    }

    /// Its release, as `uname -r` says in the guest.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The bzImage.
    pub fn image(&self) -> PathBuf {
        self.dir.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The directory of its modules (`.ko` or `.ko.xz`); there is no `modules.dep` in it.
    pub fn modules(&self) -> PathBuf {
        self.dir.join("lib/modules").join(&self.release)
    }

    /// The unpacked package.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
