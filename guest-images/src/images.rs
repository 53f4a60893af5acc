//! Everything a guest needs, in one call.

use crate::boot::Boot;
use crate::cache::Cache;
use crate::debian::Archive;
use crate::disk::Disk;
use crate::kernel::Flavour;
use crate::{AGENT, Result};

/// Kernel, initramfs and root disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// Kernel and initramfs.
    pub boot: Boot,
    /// The root disk.
    pub disk: Disk,
}

impl Images {
    /// What was built before if it has this library's agent in it, without looking for newer packages; otherwise
    /// builds what is missing. This is what a command that starts guests wants: it takes no time the second time.
    ///
    /// # Errors
    /// As [`Images::build`].
    pub fn ready(cache: &Cache, flavour: Flavour) -> Result<Self> {
        let boot = Boot::latest(cache, flavour).filter(|boot| boot.agent_is(AGENT));
        if let (Some(boot), Some(disk)) = (boot, Disk::latest(cache)) {
            return Ok(Self { boot, disk });
        }
        Self::build(&Archive::open(cache)?, flavour)
    }

    /// Builds everything from the newest packages that the indexes know of; a no-op if that is what there is.
    ///
    /// # Errors
    /// As [`Boot::build`] and [`Disk::build`].
    pub fn build(archive: &Archive, flavour: Flavour) -> Result<Self> {
        Ok(Self {
            boot: Boot::build(archive, flavour)?,
            disk: Disk::build(archive)?,
        })
    }
}
