//! Private layers that outlive a guest's process, so that a guest finds what it wrote after a restart.
//!
//! The launcher holds each layer open, without a name; the guest's process opens it through `/proc`. Layers are gone
//! with the launcher, however that ends.

use std::fs::File;
use std::os::fd::AsRawFd;

use levy_machine::config::{DiskConfig, DiskMode};
use levy_machine::virtio::blk::{DiskError, OverlayDisk};

/// Gives every disk of `disks` that has an overlay and no layer of its own an empty one. It is there for as long as the
/// files returned are.
///
/// # Errors
/// When the folder for layers does not take a file.
pub fn keep(disks: &mut [DiskConfig]) -> Result<Vec<File>, DiskError> {
    let mut layers = Vec::new();
    for disk in disks {
        if disk.mode != DiskMode::Overlay || disk.layer.is_some() {
            continue;
        }
        let layer = OverlayDisk::nameless_layer(&disk.path, &OverlayDisk::default_directory())?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), layer.as_raw_fd());
        disk.layer = Some(path.into());
        layers.push(layer);
    }
    Ok(layers)
}
