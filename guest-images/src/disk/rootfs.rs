//! The root file system as a tar archive, made by mmdebstrap.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Key, Kind};
use crate::debian::{Archive, Depth, Prefer, Request};
use crate::privilege::is_root;
use crate::tool::{self, Tool};
use crate::{Error, Result};

/// Raised when the recipe changes in a way that its inputs do not show.
const RECIPE: &str = "rootfs 1";

const KIND: Kind<'static> = Kind {
    name: "rootfs",
    needs_mib: 1500,
};

const MMDEBSTRAP: Tool = Tool {
    program: "mmdebstrap",
    package: "mmdebstrap",
};
/// Only the user namespace of an ordinary user needs it.
const UIDMAP: Tool = Tool {
    program: "newuidmap",
    package: "uidmap",
};

/// What is installed besides the essential packages and apt. There is no systemd: none of these needs it, and it
/// would add seconds of boot in an emulated guest and memory that is not the workload's.
const PACKAGES: &[&str] = &[
    "dbench",
    "iproute2",
    "iputils-ping",
    "mount",
    "nginx-light",
    "postgresql-15",
    "procps",
    "python3",
    "redis-server",
    "sqlite3",
    "stress-ng",
];

/// Files left out. PostgreSQL runs without its compiler for queries, which is half of the disk.
const LEFT_OUT: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/lib/x86_64-linux-gnu/libLLVM*",
    "/usr/lib/x86_64-linux-gnu/libz3*",
    "/usr/lib/postgresql/*/lib/bitcode/*",
    "/usr/lib/postgresql/*/lib/llvmjit*",
];

const PREPARE: &str = include_str!("prepare.sh");
const CUSTOMIZE: &str = include_str!("customize.sh");

/// The archive, built or found.
pub(super) fn build(archive: &Archive) -> Result<PathBuf> {
    let cache = archive.cache();
    let request = Request {
        name: KIND.name,
        packages: PACKAGES,
        prefer: Prefer::Stable,
        depth: Depth::WithDependencies,
    };
    let mut key = Key::new(RECIPE)
        .with(PREPARE.as_bytes())
        .with(CUSTOMIZE.as_bytes());
    for package in archive.resolve(&request)? {
        key = key.with(package.name.as_bytes()).with(package.version.as_bytes());
    }
    for path in LEFT_OUT {
        key = key.with(path.as_bytes());
    }
    let dir = cache.entry(KIND, &key, |aside| {
        cache.say("building the root file system: this takes about a minute");
        let mut tools = vec![&MMDEBSTRAP];
        if !is_root() {
            tools.push(&UIDMAP);
        }
        tool::ensure(cache, &tools)?;
        let tell = |line: &str| {
            if let Some(step) = line
                .strip_prefix("I: ")
                .filter(|step| !step.starts_with("running --"))
            {
                cache.say(&format!("mmdebstrap: {step}"));
            }
        };
        let mut command = mmdebstrap(archive, &aside.join("rootfs.tar"))?;
        MMDEBSTRAP.follow("building the root file system", &mut command, &tell)
    })?;
    Ok(dir.join("rootfs.tar"))
}

fn mmdebstrap(archive: &Archive, output: &Path) -> Result<Command> {
    let mode = if is_root() { "root" } else { "unshare" };
    let mut command = MMDEBSTRAP.command();
    command
        .env("SOURCE_DATE_EPOCH", super::EPOCH)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["--variant=apt", "--format=tar", "--architectures=amd64"]);
    command
        .arg(format!("--mode={mode}"))
        .arg(format!("--include={}", PACKAGES.join(",")));
    command.arg("--aptopt=APT::Install-Recommends \"false\"");
    for setting in archive.connection_settings() {
        command.arg(format!("--aptopt={}", setting.trim_end_matches(';')));
    }
    for option in ["force-confold", "force-unsafe-io"] {
        command.arg(format!("--dpkgopt={option}"));
    }
    for path in LEFT_OUT {
        command.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    // What it writes to standard output is the archive: the user's own file, even in another user namespace.
    let file = File::create(output).map_err(Error::file("create", output))?;
    command
        .arg(format!("--essential-hook={PREPARE}"))
        .arg(format!("--customize-hook={CUSTOMIZE}"));
    command.args(["bookworm", "-"]).stdout(file);
    for source in archive.stable_sources() {
        command.arg(source);
    }
    Ok(command)
}
