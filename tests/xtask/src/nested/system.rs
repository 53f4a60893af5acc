//! What the nested host boots: a stock Debian kernel that can be a KVM host, and a first root with its modules.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use guest_images::debian::{Archive, Depth, Prefer, Request};
use guest_images::{Cache, Cpio, Kernel, Module, Modules, busybox};

/// Modules that the nested host needs; what they depend on comes along. Cloud kernels lack 9p.
const MODULES: &[&str] = &[
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm_amd",
    "tun",
    "veth",
    "bridge",
];

const INIT: &[u8] = include_bytes!("init.sh");
const START: &[u8] = include_bytes!("start.sh");

/// A bootable system.
#[derive(Debug, Clone)]
pub(crate) struct System {
    /// A bzImage.
    pub(crate) kernel: PathBuf,
    /// The first root, without what differs from run to run.
    pub(crate) initramfs: PathBuf,
}

impl System {
    /// The system in the cache; fetched and built where it is not there yet.
    pub(crate) fn prepare(cache: &Cache, archive: &Archive) -> Result<Self> {
        let kernel = Kernel::at(kernel_tree(archive)?)?;
        let initramfs = initramfs(cache, &kernel, &busybox(archive)?)?;
        let kernel = kernel.image();
        Ok(Self { kernel, initramfs })
    }

    /// The first root of one run: the common one and `exe` and `results` appended (later archives win).
    pub(crate) fn initramfs_for(&self, exe: &Path, results: Option<&Path>) -> Result<Vec<u8>> {
        let mut bytes =
            fs::read(&self.initramfs).with_context(|| format!("cannot read {}", self.initramfs.display()))?;
        let mut run = Cpio::default();
        run.file("levy/exe", exe.as_os_str().as_encoded_bytes());
        let results = results.map_or(&[][..], |path| path.as_os_str().as_encoded_bytes());
        run.file("levy/results", results);
        bytes.extend(run.finish());
        Ok(bytes)
    }
}

/// The newest kernel of backports: the package of that name is empty and depends on the real one.
fn kernel_tree(archive: &Archive) -> Result<PathBuf> {
    let mut packages = archive.resolve(&Request {
        name: "host-kernel",
        packages: &["linux-image-amd64"],
        prefer: Prefer::Backports,
        depth: Depth::WithDependencies,
    })?;
    packages.retain(|package| {
        package
            .name
            .strip_prefix("linux-image-")
            .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    });
    if packages.len() != 1 {
        bail!(
            "linux-image-amd64 of backports leads to {} kernels instead of one",
            packages.len()
        );
    }
    Ok(archive.tree_of("host-kernel", &packages)?)
}

/// The initramfs of this kernel and busybox, built once and renamed into place.
fn initramfs(cache: &Cache, kernel: &Kernel, busybox: &[u8]) -> Result<PathBuf> {
    let mut recipe = DefaultHasher::new();
    (kernel.dir(), busybox, MODULES, INIT, START).hash(&mut recipe);
    let directory = cache.root().join("nested");
    let path = directory.join(format!("initramfs-{:016x}", recipe.finish()));
    if !path.exists() {
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let mut aside = tempfile::NamedTempFile::new_in(&directory)?;
        aside.write_all(&build(kernel, busybox)?)?;
        aside.persist(&path)?;
    }
    Ok(path)
}

fn build(kernel: &Kernel, busybox: &[u8]) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    // The kernel opens the console for /init before /init can mount anything.
    cpio.char_device("dev/console", (5, 1));
    cpio.program("bin/busybox", busybox);
    cpio.program("init", INIT);
    cpio.file("levy/start", START);
    let mut order = String::new();
    for Module { name, bytes } in Modules::of(kernel)?.load_order(MODULES, &[])? {
        cpio.file(&format!("modules/{name}.ko"), &bytes);
        order += &name;
        order.push('\n');
    }
    cpio.file("modules/order", order.as_bytes());
    Ok(cpio.finish())
}
