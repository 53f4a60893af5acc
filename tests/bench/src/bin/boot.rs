//! How long does a guest take from the start of its VMM to its agent's first line, compared with QEMU's `microvm`?
//!
//! Both run the same kernel, initramfs and command line on the same KVM, alternating, so that drift of the machine
//! meets both. The ratio is that of the medians; its interval comes from resampling the pairs. With --vmlinux, Levy
//! boots that kernel too, unpacked, once in every pair.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use guest_images::agent_protocol::{Event, Report as Word};
use levy_bench::{Random, Report, Samples};

/// A boot that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(120);

/// How often the agent's socket is looked for; short compared with any boot.
const LOOK: Duration = Duration::from_millis(1);

/// What `levy vmm` puts on the command line by itself.
const KERNEL_LINE: &str = "console=ttyS0 quiet reboot=k panic=-1 init_on_alloc=0";

/// Resamplings for the interval of the ratio.
const RESAMPLINGS: usize = 4000;

#[derive(Parser)]
struct Args {
    /// The levy binary
    #[arg(long)]
    levy: PathBuf,
    /// QEMU's program and first arguments, as a JSON list
    #[arg(long)]
    qemu: String,
    /// Kernel, a bzImage
    #[arg(long)]
    kernel: PathBuf,
    /// The same kernel unpacked, for Levy alone
    #[arg(long)]
    vmlinux: Option<PathBuf>,
    /// Initramfs with the agent
    #[arg(long)]
    initrd: PathBuf,
    /// Guest memory in MiB
    #[arg(long, default_value_t = 256)]
    memory: u64,
    /// Pairs of boots
    #[arg(long, default_value_t = 15)]
    pairs: usize,
    /// Five pairs only
    #[arg(long)]
    quick: bool,
    /// Write the report here
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One measured boot.
struct Boot {
    /// From the VMM's start to the agent's first line.
    first_line_ms: f64,
    /// Private memory of the VMM outside guest memory.
    private_kib: u64,
}

/// What was measured of one VMM.
#[derive(Default)]
struct Measured {
    first_line_ms: Samples,
    private_kib: Samples,
}

impl Measured {
    fn push(&mut self, boot: &Boot) {
        self.first_line_ms.push(boot.first_line_ms);
        self.private_kib.push(boot.private_kib as f64);
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let pairs = if args.quick { 5 } else { args.pairs };
    let qemu: Vec<String> =
        serde_json::from_str(&args.qemu).context("--qemu is not a JSON list of strings")?;
    if qemu.is_empty() || pairs == 0 {
        bail!("nothing to compare: --qemu needs a program and --pairs a number from 1 on");
    }
    let directory = tempfile::tempdir()?;
    let at = directory.path();
    let [mut levy, mut microvm, mut unpacked] = [(); 3].map(|()| Measured::default());
    let mut times = Vec::new();
    for pair in 1..=pairs {
        let ours = || boot(levy_command(&args, &args.kernel, at), &args, at);
        let theirs = || boot(microvm_command(&args, &qemu, at), &args, at);
        // Neither is always the first of its pair.
        let (a, b) = if pair % 2 == 1 {
            let a = ours()?;
            (a, theirs()?)
        } else {
            let b = theirs()?;
            (ours()?, b)
        };
        let (a_ms, b_ms) = (a.first_line_ms, b.first_line_ms);
        eprintln!("pair {pair} of {pairs}: levy {a_ms:.0} ms, qemu microvm {b_ms:.0} ms");
        levy.push(&a);
        microvm.push(&b);
        times.push((a_ms, b_ms));
        if let Some(vmlinux) = &args.vmlinux {
            let boot = boot(levy_command(&args, vmlinux, at), &args, at)?;
            eprintln!(
                "pair {pair} of {pairs}: levy vmlinux {:.0} ms",
                boot.first_line_ms
            );
            unpacked.push(&boot);
        }
    }
    let mut report = conclude(&levy, &microvm, &times);
    if args.vmlinux.is_some() {
        conclude_unpacked(&unpacked, &levy, &mut report);
    }
    Ok(report.write(args.json.as_deref())?)
}

/// Prints the table and makes the report.
fn conclude(levy: &Measured, microvm: &Measured, times: &[(f64, f64)]) -> Report {
    let (low, high) = ratio_interval(times);
    let ratio = levy.first_line_ms.median().median / microvm.first_line_ms.median().median;
    let mut report = Report::new("boot");
    report.set("pairs", times.len());
    for (name, measured) in [("levy", levy), ("qemu_microvm", microvm)] {
        let ms = measured.first_line_ms.median();
        report.set(&format!("{name}_ms"), ms.median);
        report.set(&format!("{name}_ms_interval"), [ms.low, ms.high]);
    }
    report.set("ratio", ratio);
    report.set("ratio_interval", [low, high]);
    report.set("vmm_private_kib", levy.private_kib.median().median);
    report.set("qemu_private_kib", microvm.private_kib.median().median);
    println!(
        "{:<14} {:>16} {:>28}",
        "", "ms to first line", "private KiB outside guest"
    );
    for (name, measured) in [("levy", levy), ("qemu microvm", microvm)] {
        let (ms, kib) = (measured.first_line_ms.median(), measured.private_kib.median());
        println!("{name:<14} {:>16.0} {:>28.0}", ms.median, kib.median);
    }
    let pairs = times.len();
    println!("ratio of medians {ratio:.2} (95 % interval {low:.2} to {high:.2}, {pairs} pairs)");
    report
}

/// Adds what the unpacked kernel takes, compared with the packed one.
fn conclude_unpacked(unpacked: &Measured, packed: &Measured, report: &mut Report) {
    let (ms, packed_ms) = (unpacked.first_line_ms.median(), packed.first_line_ms.median());
    let (kib, ratio) = (unpacked.private_kib.median().median, ms.median / packed_ms.median);
    report.set("levy_vmlinux_ms", ms.median);
    report.set("levy_vmlinux_ms_interval", [ms.low, ms.high]);
    report.set("vmlinux_ratio", ratio);
    println!("{:<14} {:>16.0} {kib:>28.0}", "levy, vmlinux", ms.median);
    println!("ratio of medians of levy, vmlinux to packed: {ratio:.2}");
}

/// `levy vmm` as it would be started for this guest.
fn levy_command(args: &Args, kernel: &Path, directory: &Path) -> Command {
    let mut command = Command::new(&args.levy);
    command
        .args(["vmm", "--name", "bench"])
        .arg("--kernel")
        .arg(kernel)
        .arg("--initrd")
        .arg(&args.initrd)
        .args(["--memory", &format!("size={}M", args.memory)])
        .args(["--cpus", "1"])
        .arg("--agent")
        .arg(format!("path={}", socket(directory).display()))
        .arg("--serial")
        .arg(format!("file={}", directory.join("console").display()));
    command
}

/// `microvm` with as little as the guest needs: one serial port, one virtio console for the agent, ACPI for finding it.
fn microvm_command(args: &Args, qemu: &[String], directory: &Path) -> Command {
    let mut command = Command::new(&qemu[0]);
    command
        .args(&qemu[1..])
        // With its clock: without one Linux polls for it, and its ACPI does not say that there is none.
        .args([
            "-machine",
            "microvm,accel=kvm,pit=off,pic=off,rtc=on,isa-serial=on,acpi=on",
        ])
        .args(["-cpu", "host", "-smp", "1"])
        .args(["-m", &format!("{}M", args.memory)])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .arg("-kernel")
        .arg(&args.kernel)
        .arg("-initrd")
        .arg(&args.initrd)
        .args(["-append", KERNEL_LINE])
        .arg("-serial")
        .arg(format!("file:{}", directory.join("console").display()))
        .arg("-chardev")
        .arg(format!(
            "socket,id=agent,path={},server=on,wait=off",
            socket(directory).display()
        ))
        .args([
            "-device",
            "virtio-serial-device",
            "-device",
            "virtconsole,chardev=agent",
        ]);
    command
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("agent")
}

/// Ends the VMM when dropped.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a VMM, waits for the agent's first line, measures, and takes it down.
fn boot(mut command: Command, args: &Args, directory: &Path) -> Result<Boot> {
    let _ = std::fs::remove_file(socket(directory));
    let log = directory.join("vmm");
    let started = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log)?)
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let mut vmm = Ending(child);
    match first_line(&mut vmm.0, &socket(directory), started) {
        Ok(at) => Ok(Boot {
            first_line_ms: at.as_secs_f64() * 1e3,
            private_kib: private_outside_guest(vmm.0.id(), args.memory * 1024)?,
        }),
        Err(error) => {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let console = std::fs::read_to_string(directory.join("console")).unwrap_or_default();
            let program = command.get_program().display().to_string();
            Err(error.context(format!(
                "{program} did not boot its guest; it said:\n{said}\n{console}"
            )))
        }
    }
}

fn first_line(vmm: &mut Child, socket: &Path, started: Instant) -> Result<Duration> {
    let stream = loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            break stream;
        }
        if let Some(status) = vmm.try_wait()? {
            bail!("it ended with {status}");
        }
        if started.elapsed() > DEADLINE {
            bail!("it opened no channel within {} s", DEADLINE.as_secs());
        }
        std::thread::sleep(LOOK);
    };
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .with_context(|| format!("no line from the agent within {} s", DEADLINE.as_secs()))?;
    let at = started.elapsed();
    match Event::parse(&line).map(|event| event.report) {
        Ok(Word::Boot { .. }) => Ok(at),
        _ => bail!("the agent's first line is not its boot report but {line:?}"),
    }
}

/// Private memory in KiB of all mappings but those that hold guest memory, which are the large ones.
fn private_outside_guest(pid: u32, guest_kib: u64) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let mut sum = 0;
    let mut is_guest = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match name {
            "Size:" => is_guest = value.parse::<u64>()? >= guest_kib / 2,
            "Private_Clean:" | "Private_Dirty:" if !is_guest => sum += value.parse::<u64>()?,
            _ => {}
        }
    }
    Ok(sum)
}

/// The middle 95 % of the ratio of medians over resampled pairs; the same pairs give the same interval.
fn ratio_interval(pairs: &[(f64, f64)]) -> (f64, f64) {
    let mut random = Random::new(1);
    let ratios: Samples = (0..RESAMPLINGS)
        .map(|_| {
            let picked: Vec<_> = pairs.iter().map(|_| pairs[random.place(pairs.len())]).collect();
            let ours: Samples = picked.iter().map(|pair| pair.0).collect();
            let theirs: Samples = picked.iter().map(|pair| pair.1).collect();
            ours.median().median / theirs.median().median
        })
        .collect();
    (ratios.quantile(0.025), ratios.quantile(0.975))
}

#[cfg(test)]
mod tests {
    use super::ratio_interval;

    #[test]
    fn the_interval_holds_the_ratio_and_shrinks_with_agreement() {
        let equal = [(2.0, 1.0); 15];
        assert_eq!(ratio_interval(&equal), (2.0, 2.0));
        let spread: Vec<_> = (0..15).map(|i| (100.0 + f64::from(i), 100.0)).collect();
        let (low, high) = ratio_interval(&spread);
        assert!(low < 1.07 && 1.07 < high && high - low < 0.14, "{low} {high}");
    }
}
