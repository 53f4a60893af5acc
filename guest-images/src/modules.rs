//! Which modules a guest needs, and in which order, from nothing but the unpacked kernel package.
//!
//! Debian ships no `modules.dep`; it is made at installation. Each module names those it needs in its `.modinfo`
//! section as `depends=A,B`, which is plain text once the module is decompressed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::tool::Tool;
use crate::{Error, Kernel, Result};

const XZ: Tool = Tool {
    program: "xz",
    package: "xz-utils",
};

/// A decompressed module.
pub struct Module {
    /// As the kernel calls it, without suffixes.
    pub name: String,
    /// The ELF file.
    pub bytes: Vec<u8>,
}

/// The modules of a kernel by name.
pub struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: Vec<String>,
    place: PathBuf,
}

impl Modules {
    /// Those of `kernel`, its own and those built in.
    ///
    /// # Errors
    /// A folder or its list of built-in modules cannot be read.
    pub fn of(kernel: &Kernel) -> Result<Self> {
        let place = kernel.modules();
        let list = place.join("modules.builtin");
        let builtin = fs::read_to_string(&list).map_err(Error::file("read", &list))?;
        let builtin = builtin
            .lines()
            .filter_map(|line| module_name(Path::new(line)))
            .collect();
        let mut files = BTreeMap::new();
        collect(&place.join("kernel"), &mut files)?;
        Ok(Self {
            files,
            builtin,
            place,
        })
    }

    /// The modules `names` and all they depend on, dependencies first, each once and none of `without`.
    ///
    /// # Errors
    /// One is neither there nor built into the kernel.
    pub fn load_order(&self, names: &[&str], without: &[Module]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        for name in names {
            self.add(name, without, &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, without: &[Module], order: &mut Vec<Module>) -> Result<()> {
        let known = |modules: &[Module]| modules.iter().any(|module| module.name == name);
        if self.builtin.iter().any(|builtin| builtin == name) || known(without) || known(order) {
            return Ok(());
        }
        let path = self.files.get(name).ok_or_else(|| Error::Missing {
            what: format!("the kernel module {name}"),
            place: self.place.display().to_string(),
        })?;
        let bytes = decompressed(path)?;
        for needed in dependencies(&bytes) {
            self.add(&needed, without, order)?;
        }
        order.push(Module {
            name: name.to_owned(),
            bytes,
        });
        Ok(())
    }
}

/// The name the kernel gives a module file: without suffixes, and with underscores only.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = file.strip_suffix(".xz").unwrap_or(file).strip_suffix(".ko")?;
    Some(stem.replace('-', "_"))
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::file("read", dir))? {
        let entry = entry.map_err(Error::file("read", dir))?;
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

fn decompressed(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).map_err(Error::file("read", path));
    }
    XZ.bytes(
        "decompressing a kernel module",
        XZ.command().args(["--decompress", "--stdout"]).arg(path),
    )
}

/// What `.modinfo` says after `depends=`: the strings there end with a zero byte.
fn dependencies(module: &[u8]) -> Vec<String> {
    const MARK: &[u8] = b"\0depends=";
    let Some(at) = module.windows(MARK.len()).position(|window| window == MARK) else {
        return Vec::new();
    };
    let rest = &module[at + MARK.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
    let names = String::from_utf8_lossy(&rest[..end]);
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(
            dependencies(b"x\0depends=net_failover,a-b\0license=GPL\0"),
            ["net_failover", "a_b"]
        );
        assert_eq!(dependencies(b"x\0depends=\0y"), Vec::<String>::new());
        assert_eq!(dependencies(b"nothing"), Vec::<String>::new());
    }

    #[test]
    fn names_lose_suffixes_and_dashes() {
        assert_eq!(
            module_name(Path::new("a/virtio-rng.ko.xz")).as_deref(),
            Some("virtio_rng")
        );
        assert_eq!(
            module_name(Path::new("virtio_blk.ko")).as_deref(),
            Some("virtio_blk")
        );
        assert_eq!(module_name(Path::new("modules.order")), None);
    }
}
