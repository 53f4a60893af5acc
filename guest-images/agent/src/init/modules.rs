//! Kernel modules from the initramfs: `/levy/modules/{early,late}/NN-NAME.ko`, loaded in the order of their names.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};

/// When a module is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Before the channel to the host: its transport and driver.
    Early,
    /// After it: everything else.
    Late,
}

impl Stage {
    fn dir(self) -> &'static str {
        match self {
            Self::Early => "/levy/modules/early",
            Self::Late => "/levy/modules/late",
        }
    }
}

/// Modules that can be inserted and removed on command live on here after the move to the disk.
const KEPT: &str = "/run/levy/modules";

/// Which those are: the drivers whose comings and goings the host has to bear.
const KEEP: &[&str] = &["virtio_balloon"];

/// Loads all modules of `stage` and returns what went wrong.
pub(crate) fn load(stage: Stage) -> Vec<String> {
    let Ok(files) = fs::read_dir(stage.dir()) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = files.filter_map(|file| Some(file.ok()?.path())).collect();
    paths.sort();
    paths.iter().filter_map(|path| insert_file(path).err()).collect()
}

fn insert_file(path: &Path) -> Result<(), String> {
    let file =
        File::open(path).map_err(|error| format!("cannot open the module {}: {error}", path.display()))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        // A foreign initramfs may have loaded it.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(format!("cannot load the module {}: {error}", path.display())),
    }
}

/// Copies the modules that stay loadable to where they survive the move to the disk.
pub(crate) fn keep() {
    let _ = fs::create_dir_all(KEPT);
    for name in KEEP {
        if let Some(path) = find(Path::new(Stage::Late.dir()), name) {
            // If it fails, inserting the module later says so.
            let _ = fs::copy(path, Path::new(KEPT).join(format!("00-{name}.ko")));
        }
    }
}

/// Inserts a module that was kept.
pub(crate) fn insert(name: &str) -> Result<(), String> {
    let path = find(Path::new(KEPT), name)
        .ok_or_else(|| format!("the module {name} is not there; there are: {}", KEEP.join(", ")))?;
    insert_file(&path)
}

/// Removes a module.
pub(crate) fn remove(name: &str) -> Result<(), String> {
    let c_name = CString::new(name).map_err(|_| format!("{name:?} is not a module name"))?;
    delete_module(&c_name, DeleteModuleFlags::O_NONBLOCK)
        .map_err(|error| format!("cannot remove the module {name}: {error}"))
}

/// The file of module `name` in `dir`, whose names start with a number.
fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let wanted = format!("{name}.ko");
    let of_name = |path: &PathBuf| {
        let file = path.file_name().and_then(|file| file.to_str()).unwrap_or("");
        file.split_once('-').is_some_and(|(_, rest)| rest == wanted)
    };
    fs::read_dir(dir)
        .ok()?
        .filter_map(|file| Some(file.ok()?.path()))
        .find(of_name)
}
