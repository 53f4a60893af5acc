//! The kernel's file systems and the root disk.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use super::cmdline::Cmdline;

/// How long the root disk may take to appear.
const DISK_WAIT: Duration = Duration::from_secs(10);

/// Where the disk is mounted before it becomes the root.
const NEW_ROOT: &str = "/levy/root";

/// What the agent of the initramfs leaves behind when it moves to the disk: memory to give back.
const INITRAMFS: &[&str] = &["/init", "/bin", "/levy/modules"];

/// Mounts what every Linux system has; what failed is returned as messages, since there is no channel yet.
pub(crate) fn system() -> Vec<String> {
    let mut complaints = Vec::new();
    for (kind, target, data) in [
        ("proc", "/proc", None),
        ("sysfs", "/sys", None),
        ("devtmpfs", "/dev", None),
        ("devpts", "/dev/pts", Some("mode=620,ptmxmode=666")),
        ("tmpfs", "/dev/shm", None),
        ("tmpfs", "/run", Some("mode=755")),
    ] {
        // On a disk with a read-only root the directories are there already.
        let _ = fs::create_dir_all(target);
        match mount(Some(kind), target, Some(kind), MsFlags::empty(), data) {
            // A foreign initramfs has mounted it.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => complaints.push(format!("cannot mount {target}: {error}")),
        }
    }
    complaints
}

/// Makes the disk of `root=` the root directory and says which it is; without `root=` all stays as it is.
pub(crate) fn root(cmdline: &Cmdline) -> Result<String, String> {
    let in_initramfs = Path::new("/levy/modules").exists();
    if !in_initramfs {
        let device = cmdline.root.clone().unwrap_or_else(|| "disk".to_owned());
        if !cmdline.read_only {
            remount_writable();
        }
        settle(cmdline);
        return Ok(device);
    }
    let Some(device) = &cmdline.root else {
        return Ok("initramfs".to_owned());
    };
    wait_for(device)?;
    mount_root(device, cmdline)?;
    enter().map_err(|error| format!("cannot move to the root disk {device}: {error}"))?;
    settle(cmdline);
    Ok(device.clone())
}

fn remount_writable() {
    // The messages of whatever needs to write will be clearer than one here.
    let _ = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REMOUNT, None::<&str>);
}

/// virtio probes on its own time: the device may come a moment after its driver.
fn wait_for(device: &str) -> Result<(), String> {
    let until = Instant::now() + DISK_WAIT;
    while !Path::new(device).exists() {
        if Instant::now() > until {
            return Err(format!(
                "the root disk {device} did not appear within {} s",
                DISK_WAIT.as_secs()
            ));
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn mount_root(device: &str, cmdline: &Cmdline) -> Result<(), String> {
    let flags = if cmdline.read_only {
        MsFlags::MS_RDONLY
    } else {
        MsFlags::empty()
    };
    let kind = cmdline.root_type.as_deref().unwrap_or("ext4");
    fs::create_dir_all(NEW_ROOT).map_err(|error| format!("cannot create {NEW_ROOT}: {error}"))?;
    mount(Some(device), NEW_ROOT, Some(kind), flags, None::<&str>)
        .map_err(|error| format!("cannot mount the root disk {device} as {kind}: {error}"))
}

/// What switch_root does, without starting another program: this process lives on.
fn enter() -> nix::Result<()> {
    for name in ["dev", "proc", "sys", "run"] {
        let (from, to) = (format!("/{name}"), format!("{NEW_ROOT}/{name}"));
        mount(
            Some(from.as_str()),
            to.as_str(),
            None::<&str>,
            MsFlags::MS_MOVE,
            None::<&str>,
        )?;
    }
    for path in INITRAMFS {
        // Whatever cannot be removed only costs memory. An open or running file lives on until its end.
        let _ = fs::remove_dir_all(path).or_else(|_| fs::remove_file(path));
    }
    chdir(NEW_ROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    chdir("/")
}

/// What a system expects of its root after the move.
fn settle(cmdline: &Cmdline) {
    if cmdline.read_only {
        // Nothing else can be written to on a read-only root.
        for target in ["/tmp", "/var/tmp"] {
            let _ = mount(
                Some("tmpfs"),
                target,
                Some("tmpfs"),
                MsFlags::empty(),
                Some("mode=1777"),
            );
        }
    }
    for dir in ["/run/lock", "/run/levy"] {
        let _ = fs::create_dir_all(dir);
    }
    let name = cmdline
        .hostname
        .clone()
        .or_else(|| fs::read_to_string("/etc/hostname").ok());
    let _ = nix::unistd::sethostname(name.as_deref().unwrap_or("levy").trim());
}
