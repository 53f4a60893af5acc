//! The initramfs: the agent as `/init`, the modules it loads, and busybox for people who look inside.

use std::fs;
use std::path::Path;

use crate::agent::AGENT;
use crate::cpio::Cpio;
use crate::debian::{Archive, Depth, Prefer, Request};
use crate::kernel::Kernel;
use crate::modules::{Module, Modules};
use crate::{Error, Result};

/// Loaded before the channel to the host is opened.
const EARLY: &[&str] = &["virtio_mmio", "virtio_pci", "virtio_console"];

/// Loaded after it. The disk comes first: mounting it takes longest.
const LATE: &[&str] = &[
    "virtio_blk",
    "ext4",
    "virtio_balloon",
    "virtio_rng",
    "virtio_net",
    "button",
    "evdev",
];

/// busybox's commands that people expect when they look inside.
const APPLETS: &[&str] = &[
    "sh", "ls", "cat", "ps", "dmesg", "mount", "free", "ip", "top", "grep", "lsmod",
];

/// A busybox that needs no libraries.
///
/// # Errors
/// It cannot be fetched.
pub fn busybox(archive: &Archive) -> Result<Vec<u8>> {
    let tree = archive.tree(&Request {
        name: "busybox",
        packages: &["busybox-static"],
        prefer: Prefer::Stable,
        depth: Depth::NamedOnly,
    })?;
    // Where it is depends on whether the release has merged /usr.
    let mut path = tree.join("bin/busybox");
    if !path.exists() {
        path = tree.join("usr/bin/busybox");
    }
    fs::read(&path).map_err(Error::file("read", &path))
}

/// What an initramfs is made of.
pub(crate) struct Parts {
    early: Vec<Module>,
    late: Vec<Module>,
    busybox: Vec<u8>,
}

impl Parts {
    /// Gathers the parts for `kernel`.
    ///
    /// # Errors
    /// busybox cannot be fetched, or the kernel lacks a module.
    pub(crate) fn gather(archive: &Archive, kernel: &Kernel) -> Result<Self> {
        let busybox = busybox(archive)?;
        let modules = Modules::of(kernel)?;
        let early = modules.load_order(EARLY, &[])?;
        let late = modules.load_order(LATE, &early)?;
        Ok(Self { early, late, busybox })
    }

    /// The archive, uncompressed: the kernel unpacks it faster than it could decompress it.
    pub(crate) fn cpio(&self) -> Vec<u8> {
        let mut cpio = Cpio::default();
        for dir in ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "var/tmp"] {
            cpio.dir(dir);
        }
        // The kernel opens the console for /init before /init can mount anything.
        cpio.char_device("dev/console", (5, 1));
        cpio.char_device("dev/null", (1, 3));
        // These exist even where a kernel has all that is needed built in.
        cpio.dir("levy/modules/early");
        cpio.dir("levy/modules/late");
        add_modules(&mut cpio, "early", &self.early);
        add_modules(&mut cpio, "late", &self.late);
        cpio.program("init", AGENT);
        cpio.program("bin/busybox", &self.busybox);
        for applet in APPLETS {
            cpio.link(&format!("bin/{applet}"), "busybox");
        }
        cpio.file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n");
        cpio.finish()
    }
}

fn add_modules(cpio: &mut Cpio, stage: &str, modules: &[Module]) {
    for (index, module) in modules.iter().enumerate() {
        cpio.file(
            &format!("levy/modules/{stage}/{index:02}-{}.ko", module.name),
            &module.bytes,
        );
    }
}

/// Writes an archive.
pub(crate) fn write(cpio: &[u8], path: &Path) -> Result<()> {
    fs::write(path, cpio).map_err(Error::file("write", path))
}
