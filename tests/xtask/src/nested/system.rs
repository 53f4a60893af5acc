//! What the nested host boots: a stock Debian kernel that can be a KVM host, and a first root with its modules.

use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use guest_images::debian::{Archive, Depth, Prefer, Request};
use guest_images::{Cache, Cpio};

/// Modules that the nested host needs; what they depend on comes along. Cloud kernels lack 9p.
const MODULES: &[&str] = &[
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm-amd",
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
        let kernel_tree = kernel_tree(archive)?;
        let busybox_tree = archive.tree(&Request {
            name: "busybox",
            packages: &["busybox-static"],
            prefer: Prefer::Stable,
            depth: Depth::NamedOnly,
        })?;
        let busybox = fs::read(busybox_tree.join("bin/busybox"))
            .or_else(|_| fs::read(busybox_tree.join("usr/bin/busybox")))
            .context("the package busybox-static holds no busybox")?;
        let kernel = only_file(&kernel_tree.join("boot"), "vmlinuz-")?;
        let initramfs = initramfs(cache, &kernel_tree, &busybox)?;
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
fn initramfs(cache: &Cache, kernel_tree: &Path, busybox: &[u8]) -> Result<PathBuf> {
    let mut recipe = DefaultHasher::new();
    (kernel_tree, busybox, MODULES, INIT, START).hash(&mut recipe);
    let directory = cache.root().join("nested");
    let path = directory.join(format!("initramfs-{:016x}", recipe.finish()));
    if !path.exists() {
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let mut aside = tempfile::NamedTempFile::new_in(&directory)?;
        aside.write_all(&build(kernel_tree, busybox)?)?;
        aside.persist(&path)?;
    }
    Ok(path)
}

fn build(kernel_tree: &Path, busybox: &[u8]) -> Result<Vec<u8>> {
    let modules = Modules::below(&kernel_tree.join("lib/modules"))?;
    let mut cpio = Cpio::default();
    // The kernel opens the console for /init before /init can mount anything.
    cpio.char_device("dev/console", (5, 1));
    cpio.program("bin/busybox", busybox);
    cpio.program("init", INIT);
    cpio.file("levy/start", START);
    let mut order = String::new();
    for (name, bytes) in modules.with_dependencies(MODULES)? {
        cpio.file(&format!("modules/{name}.ko"), &bytes);
        order += &name;
        order.push('\n');
    }
    cpio.file("modules/order", order.as_bytes());
    Ok(cpio.finish())
}

fn only_file(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let mut found = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        });
    match (found.next(), found.next()) {
        (Some(path), None) => Ok(path),
        _ => bail!("{} should hold exactly one {prefix}*", directory.display()),
    }
}

/// A kernel's modules by name.
struct Modules {
    files: Vec<PathBuf>,
}

impl Modules {
    fn below(directory: &Path) -> Result<Self> {
        let mut files = Vec::new();
        let mut todo = vec![directory.to_owned()];
        while let Some(next) = todo.pop() {
            for entry in fs::read_dir(&next).with_context(|| format!("cannot list {}", next.display()))? {
                let path = entry?.path();
                if path.is_dir() && !path.is_symlink() {
                    todo.push(path);
                } else {
                    files.push(path);
                }
            }
        }
        Ok(Self { files })
    }

    /// `names` and all they depend on, each after what it depends on, unpacked.
    fn with_dependencies(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut seen = HashSet::new();
        let mut out = Vec::new();
        for name in names {
            self.add(name, &mut seen, &mut out)?;
        }
        Ok(out)
    }

    fn add(&self, name: &str, seen: &mut HashSet<String>, out: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let bytes = self.read(name)?;
        for needed in dependencies(&bytes) {
            self.add(&needed, seen, out)?;
        }
        out.push((name.to_owned(), bytes));
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        // A module's name has underscores where its file may have dashes.
        let plain = |text: &str| text.replace('-', "_");
        let path = self
            .files
            .iter()
            .find(|path| {
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                file.split_once(".ko")
                    .is_some_and(|(stem, _)| plain(stem) == plain(name))
            })
            .with_context(|| format!("the kernel has no module {name}"))?;
        if path.extension().is_none_or(|extension| extension != "xz") {
            return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        }
        let output = Command::new("xz")
            .arg("--decompress")
            .arg("--stdout")
            .arg(path)
            .output()
            .context("xz is not installed: run `apt-get install xz-utils` as root")?;
        if !output.status.success() {
            bail!(
                "xz cannot unpack {}: {}",
                path.display(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(output.stdout)
    }
}

/// The names after `depends=` in the module's `.modinfo` section, a list of NUL-terminated strings.
fn dependencies(module: &[u8]) -> Vec<String> {
    let field = b"\0depends=";
    let Some(at) = module.windows(field.len()).position(|window| window == field) else {
        return Vec::new();
    };
    let rest = &module[at + field.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let names = String::from_utf8_lossy(&rest[..end]);
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(
            dependencies(b"\x7fELF..\0license=GPL\0depends=kvm,ccp\0name=kvm_amd\0"),
            ["kvm", "ccp"]
        );
        assert_eq!(dependencies(b"\0depends=\0name=x\0"), Vec::<String>::new());
        assert_eq!(dependencies(b"nothing"), Vec::<String>::new());
    }
}
