//! `cargo xtask bench NAME`: builds the bench called NAME in release mode and runs it where it belongs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::guest_system::{GuestSystem, release_binary};
use crate::{nested, place};

/// Memory of the nested host that benches with real guests run in.
const NESTED_MEMORY_MIB: u64 = 4096;

/// No bench takes longer.
const DEADLINE: Duration = Duration::from_secs(60 * 60);

/// Where a bench can run.
enum Place {
    /// On this machine as it is.
    Native,
    /// Where stock kernels run: this machine, or else the nested host.
    Guests,
}

/// Every bench: its name on the command line, the binary in `tests/bench`, and where it runs.
const BENCHES: &[(&str, &str, Place)] = &[
    ("allocator", "allocator", Place::Native),
    ("balloon-device", "balloon-device", Place::Native),
    ("balloon-guest", "balloon-guest", Place::Guests),
    ("boot", "boot", Place::Guests),
    ("engine", "engine", Place::Native),
    ("hash", "hash", Place::Native),
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which bench; `list` names them all
    name: String,
    /// Options of the bench itself (`--json FILE`, `--help`, ...)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Some((_, binary, place)) = BENCHES.iter().find(|(name, ..)| *name == args.name) else {
        let names: Vec<_> = BENCHES.iter().map(|(name, ..)| *name).collect();
        bail!(
            "no bench is called {:?}; there are: {}",
            args.name,
            names.join(", ")
        );
    };
    match place {
        Place::Native => native(binary, &args.rest),
        Place::Guests => guests(binary, &args.rest),
    }
}

fn native(binary: &str, rest: &[String]) -> Result<()> {
    let status = Command::new(env!("CARGO"))
        .args([
            "run",
            "--quiet",
            "--release",
            "--package",
            "bench",
            "--bin",
            binary,
            "--",
        ])
        .args(rest)
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("the bench {binary} failed: {status}");
    }
    Ok(())
}

/// Prepares a guest system and hands it to the bench by options; reports come back through the results folder.
fn guests(binary: &str, rest: &[String]) -> Result<()> {
    let program = release_binary("bench", binary)?;
    let system = GuestSystem::prepare()?;
    let results = results_folder(rest)?;
    let mut argv = vec![program.display().to_string()];
    argv.extend(["--levy".into(), system.levy().display().to_string()]);
    argv.extend(["--kernel".into(), system.boot().kernel().display().to_string()]);
    argv.extend(["--initrd".into(), system.boot().initramfs().display().to_string()]);
    argv.extend(["--qemu".into(), nested::qemu_words()?]);
    argv.extend(rest.iter().cloned());
    let mut place = place::Place::choose(place::Choice::Probe, NESTED_MEMORY_MIB, results.as_deref())?;
    let status = place.run(argv, &[], DEADLINE, &mut |line| println!("{line}"))?;
    if status != 0 {
        bail!("the bench {binary} failed with status {status}");
    }
    Ok(())
}

/// The folder of the file after `--json`: the nested host's only way to leave a file here.
fn results_folder(rest: &[String]) -> Result<Option<PathBuf>> {
    let after = |name: &str| {
        let at = rest.iter().position(|word| word == name)?;
        rest.get(at + 1).cloned()
    };
    let joined = rest
        .iter()
        .find_map(|word| word.strip_prefix("--json=").map(str::to_owned));
    let Some(file) = joined.or_else(|| after("--json")) else {
        return Ok(None);
    };
    let file = std::path::absolute(file)?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        bail!(
            "the report {} cannot be written: there is no folder {}",
            file.display(),
            folder.display()
        );
    }
    Ok(Some(folder.to_owned()))
}
