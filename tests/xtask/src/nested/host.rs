//! A running nested host: booted once, runs any number of jobs, and is gone when the value is dropped.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use super::inside::PORT;
use super::qemu::Qemu;
use super::system::System;
use super::wire::{Frame, Job};
use crate::interrupt;

/// Far more than a boot takes on a busy machine.
const BOOT_DEADLINE: Duration = Duration::from_secs(180);

/// How often a wait looks for Ctrl-C and a dead QEMU.
const TICK: Duration = Duration::from_millis(100);

/// Lines of the nested host's console that an error shows.
const CONSOLE_LINES: usize = 60;

/// The part of EPYC with nested paging that QEMU emulates, so that it has nothing to warn about.
const CPU: &str = "EPYC,+svm,+npt,-fxsr-opt,-misalignsse,-osvw,-topoext,-nrip-save,-xsavec";

/// `init_on_alloc=0`: zeroing every page of emulated memory twice only costs time. `panic=-1` with `-no-reboot`: a
/// panic ends QEMU at once.
const KERNEL_LINE: &str = "console=ttyS0 quiet panic=-1 init_on_alloc=0 mitigations=off random.trust_cpu=on";

/// How big the host is and what it shares.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// Emulated CPUs.
    pub(crate) cpus: u32,
    /// Its memory in MiB.
    pub(crate) memory_mib: u64,
    /// A directory that is writable inside, at the same path; absolute, exists.
    pub(crate) results: Option<PathBuf>,
}

/// Which output a job wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobEnd {
    /// With this status.
    Exited(i32),
    /// It was still running at its deadline; the host should not be trusted with another job.
    TimedOut,
}

/// A booted host. Dropping it ends QEMU and everything inside.
pub(crate) struct Host {
    qemu: Child,
    to: ChildStdin,
    from: Receiver<std::io::Result<Frame>>,
    /// Console log and first root of this run.
    directory: TempDir,
}

impl Host {
    /// Boots and waits until it takes jobs.
    pub(crate) fn boot(qemu: &Qemu, system: &System, shape: &Shape) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("levy-nested-").tempdir()?;
        let exe = std::env::current_exe().context("cannot find this program's own path")?;
        let initramfs = directory.path().join("initramfs");
        std::fs::write(&initramfs, system.initramfs_for(&exe, shape.results.as_deref())?)?;
        let mut command = qemu.command();
        machine(&mut command, shape);
        shares(&mut command, shape.results.as_deref())?;
        command
            .arg("-kernel")
            .arg(&system.kernel)
            .arg("-initrd")
            .arg(&initramfs);
        command.arg("-append").arg(KERNEL_LINE);
        command
            .arg("-serial")
            .arg(format!("file:{}", directory.path().join("console").display()));
        // The channel is QEMU's own stdin and stdout: when this process dies, however it dies, the inside reads the end
        // of it and switches off.
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(directory.path().join("qemu"))?)
            .process_group(0);
        let mut child = command.spawn().context("cannot start QEMU")?;
        let (Some(to), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("QEMU has no standard input and output");
        };
        let (tell, from) = channel();
        std::thread::spawn(move || {
            while let Some(frame) = Frame::read(&mut stdout).transpose() {
                if tell.send(frame).is_err() {
                    return;
                }
            }
        });
        let mut host = Self {
            qemu: child,
            to,
            from,
            directory,
        };
        let started = Instant::now();
        match host.next(started + BOOT_DEADLINE)? {
            Some(Frame::Ready) => Ok(host),
            Some(_) => bail!("the nested host did not greet{}", host.console()),
            None => bail!(
                "the nested host was not up after {} s{}",
                BOOT_DEADLINE.as_secs(),
                host.console()
            ),
        }
    }

    /// Runs `job` to its end or until `deadline` has passed, handing its output to `sink` as it comes.
    pub(crate) fn run(
        &mut self,
        job: &Job,
        deadline: Duration,
        mut sink: impl FnMut(Stream, &[u8]) -> std::io::Result<()>,
    ) -> Result<JobEnd> {
        let until = Instant::now() + deadline;
        if Frame::Start(job.clone()).write(&mut self.to).is_err() {
            bail!("the nested host is gone{}", self.console());
        }
        loop {
            match self.next(until)? {
                Some(Frame::Stdout(bytes)) => sink(Stream::Out, &bytes)?,
                Some(Frame::Stderr(bytes)) => sink(Stream::Err, &bytes)?,
                Some(Frame::Exit(status)) => return Ok(JobEnd::Exited(status)),
                Some(Frame::Ready | Frame::Start(_) | Frame::Kill | Frame::Nudge) => {
                    bail!("the nested host started anew in the middle of a job")
                }
                None => {
                    self.whisper(&Frame::Kill);
                    return Ok(JobEnd::TimedOut);
                }
            }
        }
    }

    /// The next frame, or `None` at `until`.
    fn next(&mut self, until: Instant) -> Result<Option<Frame>> {
        loop {
            interrupt::check()?;
            let left = until.saturating_duration_since(Instant::now());
            match self.from.recv_timeout(left.min(TICK)) {
                Ok(frame) => return frame.map(Some).map_err(Into::into),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => self.whisper(&Frame::Nudge),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.qemu.wait()?;
                    bail!("the nested host died: QEMU ended with {status}{}", self.console());
                }
            }
        }
    }

    /// Writes a small frame, unless a host that reads no more has left no room for it.
    fn whisper(&mut self, frame: &Frame) {
        let mut pipe = [PollFd::new(&self.to, PollFlags::OUT)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        if matches!(poll(&mut pipe, Some(&now)), Ok(1..)) {
            // A host that is gone shows when its frames end.
            let _ = frame.write(&mut self.to);
        }
    }

    /// The end of the console and of QEMU's own messages, for an error.
    fn console(&self) -> String {
        let mut text = String::new();
        for name in ["console", "qemu"] {
            let bytes = std::fs::read(self.directory.path().join(name)).unwrap_or_default();
            text += &String::from_utf8_lossy(&bytes);
        }
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let tail = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
        if tail.is_empty() {
            return "; it printed nothing".into();
        }
        format!("; the end of its console:\n  {}", tail.join("\n  "))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.to.flush();
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn machine(command: &mut Command, shape: &Shape) {
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-vga", "none"])
        // Kept out of KSM, which the engine bench measures on this machine.
        .args(["-machine", "q35,mem-merge=off", "-accel", "tcg,thread=multi"])
        .args(["-cpu", CPU])
        .args(["-smp", &shape.cpus.to_string()])
        .args(["-m", &format!("{}M", shape.memory_mib)])
        .args(["-chardev", "stdio,id=channel,signal=off"])
        .args(["-device", "virtio-serial-pci"])
        .args(["-device", &format!("virtserialport,chardev=channel,name={PORT}")]);
}

/// The machine's root, read-only, and the results folder.
fn shares(command: &mut Command, results: Option<&Path>) -> Result<()> {
    let root = "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap";
    command
        .args(["-fsdev", root])
        .args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]);
    if let Some(path) = results {
        let path = path.to_str().context("the results folder's path is not UTF-8")?;
        // A comma in an option's value is written twice.
        let path = path.replace(',', ",,");
        command
            .args([
                "-fsdev",
                &format!("local,id=results,path={path},security_model=none"),
            ])
            .args(["-device", "virtio-9p-pci,fsdev=results,mount_tag=results"]);
    }
    Ok(())
}
