//! What has to be there before guests run, for every command that starts some.

use std::path::{Path, PathBuf};
use std::time::Duration;

use allocator::Pages;
use guest_images::{Boot, Cache, Flavour, Images, debian::Archive};

use crate::doctor::Machine;
use levy_launcher::GuestArgs;
use levy_machine::config::{DiskConfig, DiskMode};
use levy_machine::process::{self, Signals};

/// What is missing, or cannot be given twice.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetupError {
    #[error("{0}")]
    NoKernelsHere(Machine),
    #[error("cannot build the guest image; give your own with --kernel and --initrd")]
    Images(#[source] guest_images::Error),
    #[error("--net tap={0} cannot serve several guests; give each a tap of its own, or leave --net out")]
    OneTap(String),
    #[error("--disk path={path} cannot be written by several guests; add overlay=on or readonly=on", path = .0.display())]
    OneDisk(PathBuf),
    #[error("the host cannot start this process properly")]
    Process(#[source] std::io::Error),
    #[error("cannot use {dir} for swap; give another --swap", dir = dir.display())]
    Swap {
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Whether this machine runs kernels.
pub(super) fn machine() -> Result<(), SetupError> {
    match Machine::probe() {
        found if found.runs_kernels() => Ok(()),
        found => Err(SetupError::NoKernelsHere(found)),
    }
}

/// The signals that end this process, held back. Before any thread is started.
pub(super) fn signals() -> Result<Signals, SetupError> {
    process::block_end_signals().map_err(SetupError::Process)
}

/// What may be promised as swap in `dir`.
pub(super) fn backing(dir: &Path) -> Result<Pages, SetupError> {
    levy_manager::backing(dir).map_err(|source| SetupError::Swap {
        dir: dir.to_owned(),
        source,
    })
}

/// Whether several guests may be made of `guest`.
pub(super) fn several(guest: &GuestArgs) -> Result<(), SetupError> {
    if let Some(net) = guest.net.first() {
        return Err(SetupError::OneTap(net.tap.clone()));
    }
    match guest.disk.iter().find(|disk| disk.mode == DiskMode::Write) {
        Some(disk) => Err(SetupError::OneDisk(disk.path.clone())),
        None => Ok(()),
    }
}

/// For a guest without a kernel: kernel, initramfs and, unless it has disks or wants none, the Debian disk, from the
/// cache, or built with progress on standard error.
pub(super) fn default_images(guest: &mut GuestArgs, no_disk: bool) -> Result<(), SetupError> {
    fill_in(guest, no_disk).map_err(SetupError::Images)
}

fn fill_in(guest: &mut GuestArgs, no_disk: bool) -> guest_images::Result<()> {
    if guest.kernel.is_some() {
        return Ok(());
    }
    let cache = Cache::of_user()?.on_progress(|step| process::say(step));
    let boot = if no_disk || !guest.disk.is_empty() {
        default_boot(&cache)?
    } else {
        let images = Images::ready(&cache, Flavour::default())?;
        guest.disk.push(DiskConfig {
            path: images.disk.image(),
            mode: DiskMode::Overlay,
            layer: None,
            latency: Duration::ZERO,
        });
        guest.cmdline = format!("root=/dev/vda {}", guest.cmdline).trim_end().to_owned();
        images.boot
    };
    guest.kernel = Some(boot.kernel());
    guest.initrd.get_or_insert_with(|| boot.initramfs());
    Ok(())
}

fn default_boot(cache: &Cache) -> guest_images::Result<Boot> {
    match Boot::latest(cache, Flavour::default()) {
        Some(boot) => Ok(boot),
        None => Boot::build(&Archive::open(cache)?, Flavour::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_guests_cannot_have_is_named() {
        let guest = |options: &[&str]| {
            #[derive(clap::Parser)]
            struct Line {
                #[command(flatten)]
                guest: GuestArgs,
            }
            let words = ["levy", "--memory", "size=64M"].iter().chain(options);
            <Line as clap::Parser>::parse_from(words).guest
        };
        assert!(several(&guest(&["--disk", "path=root.img,overlay=on"])).is_ok());
        assert!(several(&guest(&["--disk", "path=root.img,readonly=on"])).is_ok());
        let disk = several(&guest(&["--disk", "path=root.img"])).unwrap_err();
        assert!(
            disk.to_string().contains("path=root.img cannot be written"),
            "{disk}"
        );
        let tap = several(&guest(&["--net", "tap=tap7"])).unwrap_err();
        assert!(tap.to_string().contains("tap=tap7 cannot serve"), "{tap}");
        assert!(backing(Path::new("/no/such/place")).is_err());
    }
}
