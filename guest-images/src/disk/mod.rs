//! The root disk: a small Debian with the services that workloads need, as a raw ext4 image.
//!
//! Two entries of the cache make one disk. The root file system (a tar archive) takes a minute and changes with the
//! packages' versions; the disk is made from it in seconds and changes with the agent too. No loop device is used and
//! root is not needed where the user has subordinate ids (`/etc/subuid`).

mod rootfs;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::agent::AGENT;
use crate::cache::{Cache, Key, Kind};
use crate::debian::Archive;
use crate::privilege::{UNSHARE, as_root, remove_tree};
use crate::tool::{self, Tool};
use crate::{Error, Result};

/// Raised when the recipe changes in a way that its inputs do not show.
const RECIPE: &str = "disk 2";

const KIND: Kind<'static> = Kind {
    name: "disk",
    needs_mib: 1500,
};

/// Bytes of the image. It is sparse: about a quarter is used, the rest is room for workloads.
const SIZE: u64 = 2 << 30;

/// Fixed, so that the same input gives the same image.
const UUID: &str = "6c657679-0000-4000-8000-726f6f746673";
const HASH_SEED: &str = "6c657679-0000-4000-8000-686173687365";

/// The time of everything that has no time of its own.
const EPOCH: &str = "1700000000";

const MKE2FS: Tool = Tool {
    program: "mke2fs",
    package: "e2fsprogs",
};
const TAR: Tool = Tool {
    program: "tar",
    package: "tar",
};

/// Unpacks the archive $1 into $2, adds the agent $3 as init, and makes the image $4 of it.
const MAKE_IMAGE: &str = r#"set -eu
# Device nodes are not for ordinary users to make; the kernel mounts its own /dev.
tar --extract --file "$1" --directory "$2" --numeric-owner --preserve-permissions --exclude "./dev/*"
install -m 755 "$3" "$2/usr/sbin/levy-agent"
ln -sf levy-agent "$2/usr/sbin/init"
shift 3
mke2fs "$@"
"#;

/// A root disk image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    dir: PathBuf,
}

impl Disk {
    /// Builds the disk, or finds it built. Takes about a minute and 800 MiB of the cache the first time.
    ///
    /// # Errors
    /// A package is not available, a tool is missing, or the disk is full.
    pub fn build(archive: &Archive) -> Result<Self> {
        let cache = archive.cache();
        let rootfs = rootfs::build(archive)?;
        let key = Key::new(RECIPE)
            .with(rootfs.as_os_str().as_encoded_bytes())
            .with(AGENT);
        let dir = cache.entry(KIND, &key, |aside| {
            cache.say("building the root disk");
            tool::ensure(cache, &[&MKE2FS, &TAR])?;
            make(&rootfs, aside)
        })?;
        Ok(Self { dir })
    }

    /// What was built last, if anything; looks only into the cache.
    pub fn latest(cache: &Cache) -> Option<Self> {
        let disk = Self {
            dir: cache.latest(KIND.name)?,
        };
        disk.image().exists().then_some(disk)
    }

    /// The raw image: one ext4 file system without a partition table. Guests must not write to it; give each an
    /// overlay or a copy.
    pub fn image(&self) -> PathBuf {
        self.dir.join("disk.raw")
    }
}

fn make(rootfs: &Path, aside: &Path) -> Result<()> {
    let (root, agent, image) = (aside.join("root"), aside.join("agent"), aside.join("disk.raw"));
    fs::create_dir(&root).map_err(Error::file("create", &root))?;
    fs::write(&agent, AGENT).map_err(Error::file("write", &agent))?;
    let file = File::create(&image).map_err(Error::file("create", &image))?;
    file.set_len(SIZE).map_err(Error::file("size", &image))?;

    let mut command = as_root();
    command
        .args(["sh", "-c", MAKE_IMAGE, "sh"])
        .arg(rootfs)
        .arg(&root)
        .arg(&agent);
    command
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-L",
            "levy-root",
            "-U",
            UUID,
            "-m",
            "0",
            "-d",
        ])
        .arg(&root);
    // A journal as small as it may be, and nothing left for the guest to initialize in the background.
    let extended = format!("hash_seed={HASH_SEED},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0");
    command.args(["-J", "size=8", "-E", &extended]).arg(&image);
    command
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .env("E2FSPROGS_FAKE_TIME", EPOCH);
    UNSHARE.run("making the root disk", &mut command)?;
    remove_tree(&root)?;
    fs::remove_file(&agent).map_err(Error::file("remove", &agent))?;
    fs::set_permissions(&image, fs::Permissions::from_mode(0o444)).map_err(Error::file("protect", &image))
}
