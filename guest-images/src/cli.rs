//! The `images` command: builds what guests need and says where it is.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::boot::Boot;
use crate::cache::Cache;
use crate::debian::{Archive, Mirror};
use crate::disk::Disk;
use crate::kernel::Flavour;
use crate::{Error, Images, Result};

/// Build guest kernels, initramfs and root disk from Debian packages, or reuse cached ones
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which of Debian's kernels
    #[arg(long, value_name = "NAME", default_value = "6.12-cloud", value_parser = flavour)]
    kernel: Flavour,
    /// Kernel and initramfs only
    #[arg(long)]
    no_disk: bool,
    /// Look for newer packages now (otherwise once a week)
    #[arg(long)]
    refresh: bool,
    /// Print paths as JSON
    #[arg(long)]
    json: bool,
}

fn flavour(name: &str) -> std::result::Result<Flavour, String> {
    let names = || Flavour::ALL.map(Flavour::name).join(", ");
    Flavour::from_name(name).ok_or_else(|| format!("there are: {}", names()))
}

/// Runs the command: progress goes to stderr, paths to stdout.
///
/// # Errors
/// As [`Images::build`].
pub fn run(args: &Args) -> Result<()> {
    let cache = Cache::of_user()?.on_progress(say);
    let archive = Archive::open(&cache)?;
    if args.refresh {
        archive.refresh()?;
    }
    let (boot, disk) = if args.no_disk {
        (Boot::build(&archive, args.kernel)?, None)
    } else {
        let images = Images::build(&archive, args.kernel)?;
        (images.boot, Some(images.disk))
    };
    show(&table(&boot, disk.as_ref().map(Disk::image), args.json))
}

/// Progress, which is no reason to fail.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Writes what was asked for. A reader that has closed its end had what it wanted.
fn show(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => Err(Error::File {
            action: "write to",
            path: "standard output".into(),
            source,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn table(boot: &Boot, disk: Option<PathBuf>, json: bool) -> String {
    let show = |path: &Path| path.display().to_string();
    let mut rows = vec![
        ("release", boot.release().to_owned()),
        ("kernel", show(&boot.kernel())),
        ("initramfs", show(&boot.initramfs())),
    ];
    rows.extend(boot.vmlinux().map(|vmlinux| ("vmlinux", show(&vmlinux))));
    rows.extend(disk.map(|disk| ("disk", show(&disk))));
    if json {
        let object: serde_json::Map<_, _> = rows
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        return format!("{}\n", serde_json::Value::Object(object));
    }
    let rows = rows.iter().map(|(name, value)| format!("{name:10} {value}\n"));
    rows.collect()
}

/// For `doctor`: what keeps images from being built on this machine, without building any.
///
/// # Errors
/// The first thing that is missing, with its cure.
pub fn check() -> Result<()> {
    Mirror::of_this_machine()?.sources_list().map(drop)
}
