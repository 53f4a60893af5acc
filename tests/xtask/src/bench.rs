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
enum Runs {
    /// On this machine as it is.
    Native,
    /// Where stock kernels run: this machine, or else the nested host.
    Guests,
    /// There too, and `levy bench` itself measures.
    Levy,
}

/// Every bench: its name on the command line, the binary in `tests/bench` (or the name in `levy bench`), and where it
/// runs.
const BENCHES: &[(&str, &str, Runs)] = &[
    ("allocator", "allocator", Runs::Native),
    ("balloon-device", "balloon-device", Runs::Native),
    ("balloon-guest", "balloon-guest", Runs::Guests),
    ("boot", "boot", Runs::Guests),
    ("engine", "engine", Runs::Native),
    ("hash", "hash", Runs::Native),
    ("hints", "hints", Runs::Levy),
    ("manager", "manager", Runs::Native),
    ("overcommit", "overcommit", Runs::Levy),
    ("overhead", "overhead", Runs::Levy),
    ("overcommit-flat", "overcommit-flat", Runs::Native),
    ("sharing", "sharing", Runs::Levy),
    ("sharing-vs-ksm", "sharing-vs-ksm", Runs::Levy),
    ("tax", "tax", Runs::Levy),
    ("wake", "wake", Runs::Levy),
];

#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    /// Which bench; `list` names them all
    name: String,
    /// Options of the bench itself (`--json FILE`, `--help`, ...)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let Some((_, binary, place)) = BENCHES.iter().find(|(name, ..)| *name == args.name) else {
        let names: Vec<_> = BENCHES.iter().map(|(name, ..)| *name).collect();
        bail!(
            "no bench is called {:?}; there are: {}",
            args.name,
            names.join(", ")
        );
    };
    match place {
        Runs::Native => native(binary, &args.rest),
        Runs::Guests => guests(binary, &args.rest),
        Runs::Levy => levy(binary, &args.rest),
    }
}

pub(crate) fn native(binary: &str, rest: &[String]) -> Result<()> {
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
    let mut argv = vec![program.display().to_string()];
    argv.extend(["--levy".into(), system.levy().display().to_string()]);
    argv.extend(boot_options(&system));
    if let Some(vmlinux) = system.boot().vmlinux().filter(|_| binary == "boot") {
        argv.extend(["--vmlinux".into(), vmlinux.display().to_string()]);
    }
    argv.extend(["--qemu".into(), nested::qemu_words()?]);
    argv.extend(rest.iter().cloned());
    place_and_run(binary, argv, rest)
}

/// Has the product itself measure, as a user would; it gets the images unless the options name others.
pub(crate) fn levy(bench: &str, rest: &[String]) -> Result<()> {
    let system = GuestSystem::prepare()?;
    let mut argv = vec![system.levy().display().to_string(), "bench".into(), bench.into()];
    let given = |name: &str| rest.iter().any(|word| word.split('=').next() == Some(name));
    if !given("--kernel") {
        argv.extend(boot_options(&system));
        if !given("--disk") && !given("--no-disk") {
            let disk = system.disk().image().display().to_string();
            argv.extend(["--disk".into(), format!("path={disk},overlay=on")]);
            argv.push("--cmdline=root=/dev/vda".into());
        }
    }
    if !given("--deadline") {
        // The last of eight guests takes its time on one emulated CPU that the others are at work on.
        argv.push("--deadline=20m".into());
    }
    argv.extend(rest.iter().cloned());
    place_and_run(bench, argv, rest)
}

fn boot_options(system: &GuestSystem) -> [String; 4] {
    let boot = system.boot();
    let (kernel, initramfs) = (boot.kernel(), boot.initramfs());
    [
        "--kernel".into(),
        kernel.display().to_string(),
        "--initrd".into(),
        initramfs.display().to_string(),
    ]
}

/// Runs `argv` where stock kernels run, with the folders of its files writable.
fn place_and_run(bench: &str, argv: Vec<String>, rest: &[String]) -> Result<()> {
    let results = results_folder(rest)?;
    let mut place = place::Place::choose(place::Choice::Probe, NESTED_MEMORY_MIB, results.as_deref())?;
    let status = place.run(argv, &[], DEADLINE, &mut |line| println!("{line}"))?;
    if status != 0 {
        bail!("the bench {bench} failed with status {status}");
    }
    Ok(())
}

/// The folder of the files after `--json` and `--plot`: the nested host's only way to leave files here.
fn results_folder(rest: &[String]) -> Result<Option<PathBuf>> {
    let folders = ["--json", "--plot"]
        .into_iter()
        .filter_map(|option| folder_of(option, rest).transpose());
    let folders: Vec<_> = folders.collect::<Result<_>>()?;
    match folders.as_slice() {
        [one, other] if one != other => bail!("--json and --plot must name files in one folder"),
        _ => Ok(folders.into_iter().next()),
    }
}

/// The folder of the file after `option`.
fn folder_of(option: &str, rest: &[String]) -> Result<Option<PathBuf>> {
    let after = || {
        let at = rest.iter().position(|word| word == option)?;
        rest.get(at + 1).cloned()
    };
    let joined = rest
        .iter()
        .find_map(|word| word.strip_prefix(option)?.strip_prefix('=').map(str::to_owned));
    let Some(file) = joined.or_else(after) else {
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
