//! `cargo xtask nested -- COMMAND`: runs any command inside an emulated machine that is a KVM host.
//!
//! For machines without hardware virtualization. QEMU emulates a CPU with nested paging; on it runs a stock Debian
//! kernel with this machine's root (read-only, with a layer in memory above) and a real /dev/kvm. What is measured
//! there is 10 to 30 times slower than on hardware; memory contents and counts are exact.

mod host;
pub(crate) mod inside;
mod mend;
mod qemu;
mod system;
mod wire;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_images::Cache;
use guest_images::debian::Archive;

pub(crate) use host::{Host, JobEnd, Shape, Stream};
use qemu::Qemu;
use system::System;
pub(crate) use wire::Job;

/// What `timeout` returns too.
const TIMED_OUT: u8 = 124;

#[derive(clap::Args)]
pub(crate) struct NestedArgs {
    /// CPUs of the emulated host; with more than one, start guests on one of them only (`taskset -c 0`), because the
    /// emulation is not sound with guests on several CPUs at once
    #[arg(long, default_value_t = CPUS, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Memory of the emulated host in MiB
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(512..=1 << 20))]
    memory: u64,
    /// Seconds after which the command is ended with status 124
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    deadline: u64,
    /// A folder that the command may write to, at the same path inside; everything else it writes is lost
    #[arg(long)]
    results: Option<PathBuf>,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub(crate) fn run(args: &NestedArgs) -> Result<ExitCode> {
    let results = args.results.as_deref().map(folder).transpose()?;
    let shape = Shape {
        cpus: args.cpus,
        memory_mib: args.memory,
        results,
    };
    let job = job(args.command.clone())?;
    let mut host = boot(&shape)?;
    match host.run(&job, Duration::from_secs(args.deadline), pass_on)? {
        JobEnd::Exited(status) => Ok(ExitCode::from(u8::try_from(status).unwrap_or(1))),
        JobEnd::TimedOut => {
            eprintln!(
                "nested: ended {:?} at its deadline of {} s",
                args.command[0], args.deadline
            );
            Ok(ExitCode::from(TIMED_OUT))
        }
    }
}

/// Fetches what is missing, boots a host of this shape and tells what it does on stderr.
pub(crate) fn boot(shape: &Shape) -> Result<Host> {
    let cache = Cache::of_user()?.on_progress(|line| eprintln!("nested: {line}"));
    let archive = Archive::open(&cache)?;
    let qemu = Qemu::find(&archive)?;
    let system = System::prepare(&cache, &archive)?;
    let started = Instant::now();
    let host = Host::boot(&qemu, &system, shape)?;
    eprintln!(
        "nested: host up after {:.1} s ({} CPUs, {} MiB, {})",
        started.elapsed().as_secs_f64(),
        shape.cpus,
        shape.memory_mib,
        qemu.version
    );
    Ok(host)
}

/// The words that start a QEMU, for a bench that wants it as a rival: a JSON list.
pub(crate) fn qemu_words() -> Result<String> {
    let cache = Cache::of_user()?.on_progress(|line| eprintln!("nested: {line}"));
    let qemu = Qemu::find(&Archive::open(&cache)?)?;
    Ok(serde_json::to_string(&qemu.words()?)?)
}

/// A job with this process's directory and environment.
pub(crate) fn job(argv: Vec<String>) -> Result<Job> {
    let cwd = std::env::current_dir().context("the working directory is gone")?;
    let Some(cwd) = cwd.to_str() else {
        bail!("the working directory {} is not UTF-8", cwd.display());
    };
    // What is not UTF-8 could not be passed on; nothing of ours needs such a variable.
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    Ok(Job {
        argv,
        cwd: cwd.to_owned(),
        env,
    })
}

/// One, because QEMU 10.0's emulation of SVM is only sound while guests run on one CPU of the nested host: with guests on
/// two at once their host's kernel died of corrupted stacks within two rounds of boots, with nested and with shadow
/// paging; with all of them on one CPU it did not.
pub(crate) const CPUS: u32 = 1;

/// A sink that passes a job's output on to this process's own.
pub(crate) fn pass_on(stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
    match stream {
        Stream::Out => {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()
        }
        Stream::Err => std::io::stderr().lock().write_all(bytes),
    }
}

/// `path` made and made absolute.
fn folder(path: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(path)
        .with_context(|| format!("cannot create the results folder {}", path.display()))?;
    Ok(path.canonicalize()?)
}
