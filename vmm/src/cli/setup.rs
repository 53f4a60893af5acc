//! What has to be there before guests run, for every command that starts some.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use allocator::Pages;
use guest_images::{Boot, Cache, Flavour, Images, debian::Archive};

use crate::doctor::Machine;
use levy_launcher::GuestArgs;
use levy_machine::config::{DiskConfig, DiskMode};
use levy_machine::process::{self, Signals};

/// What guests without a kernel of their own boot.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(super) struct ImageArgs {
    /// Do not attach the Debian disk that guests without --kernel and --disk otherwise share
    #[arg(long)]
    pub(super) no_disk: bool,
    /// Whether the Debian kernel places itself at random addresses. With off it boots sooner, and guests have more equal
    /// pages; with on, an attacker in the guest finds its kernel less easily
    #[arg(long, value_enum, default_value_t, conflicts_with = "kernel")]
    pub(super) kaslr: Kaslr,
}

/// Whether a kernel places itself at random addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kaslr {
    On,
    #[default]
    Off,
}

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
pub(super) fn default_images(guest: &mut GuestArgs, images: ImageArgs) -> Result<(), SetupError> {
    fill_in(guest, images).map_err(SetupError::Images)
}

fn fill_in(guest: &mut GuestArgs, asked: ImageArgs) -> guest_images::Result<()> {
    if guest.kernel.is_some() {
        return Ok(());
    }
    let cache = Cache::of_user()?.on_progress(|step| process::say(step));
    let boot = if asked.no_disk || !guest.disk.is_empty() {
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
    boot_kernel(guest, &boot, asked.kaslr);
    guest.initrd.get_or_insert_with(|| boot.initramfs());
    Ok(())
}

/// The vmlinux, which is where it was linked; or the bzImage, which places itself at random unless it is told not to.
fn boot_kernel(guest: &mut GuestArgs, boot: &Boot, kaslr: Kaslr) {
    let vmlinux = match kaslr {
        Kaslr::On => None,
        Kaslr::Off => boot.vmlinux(),
    };
    if vmlinux.is_none() && kaslr == Kaslr::Off {
        // Once for all guests of a fleet.
        static TOLD: Once = Once::new();
        TOLD.call_once(|| {
            process::say(format_args!(
                "{} is not unpacked and boots more slowly; `levy images` builds it anew",
                boot.kernel().display()
            ));
        });
        guest.cmdline = format!("nokaslr {}", guest.cmdline).trim_end().to_owned();
    }
    guest.kernel = Some(vmlinux.unwrap_or_else(|| boot.kernel()));
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

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        guest: GuestArgs,
        #[command(flatten)]
        images: ImageArgs,
    }

    fn line(options: &[&str]) -> Result<Line, clap::Error> {
        let words = ["levy", "--memory", "size=64M"].iter().chain(options);
        <Line as clap::Parser>::try_parse_from(words)
    }

    /// Kernel and command line of a guest with these options, where these files were built.
    fn booted(built: &[&str], options: &[&str]) -> (String, String) {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join(format!("boot-{}", Flavour::default().name()));
        std::fs::create_dir_all(home.join("key")).unwrap();
        std::os::unix::fs::symlink("key", home.join("latest")).unwrap();
        for file in built.iter().chain(&["release"]) {
            std::fs::write(home.join("key").join(file), "").unwrap();
        }
        let boot = Boot::latest(&Cache::at(dir.path()).unwrap(), Flavour::default()).unwrap();
        let Line { mut guest, images } = line(options).unwrap();
        boot_kernel(&mut guest, &boot, images.kaslr);
        let kernel = guest.kernel.unwrap();
        (
            kernel.file_name().unwrap().to_str().unwrap().to_owned(),
            guest.cmdline,
        )
    }

    #[test]
    fn guests_boot_the_unpacked_kernel_unless_it_is_to_be_at_random_addresses() {
        let (both, old) = (["bzImage", "vmlinux"], ["bzImage"]);
        for (built, options, kernel, cmdline) in [
            (&both[..], &["--cmdline", "ro"][..], "vmlinux", "ro"),
            (&both, &["--kaslr", "off"], "vmlinux", ""),
            (&both, &["--kaslr", "on"], "bzImage", ""),
            (&old, &[], "bzImage", "nokaslr"),
            (&old, &["--cmdline", "ro"], "bzImage", "nokaslr ro"),
            (&old, &["--kaslr", "on"], "bzImage", ""),
        ] {
            let expected = (kernel.to_owned(), cmdline.to_owned());
            assert_eq!(booted(built, options), expected, "{built:?} {options:?}");
        }
        let refused = line(&["--kernel", "bzImage", "--kaslr", "on"]).unwrap_err();
        assert!(refused.to_string().contains("cannot be used with"), "{refused}");
    }

    #[test]
    fn what_several_guests_cannot_have_is_named() {
        let guest = |options: &[&str]| line(options).unwrap().guest;
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
