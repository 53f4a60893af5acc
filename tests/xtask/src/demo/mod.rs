//! `cargo xtask demo`: from a clean clone to three Debian guests under load, with a table of what they cost.

mod guests;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use guest_images::Cache;
use levy::doctor::Machine;

use crate::bench;
use crate::guest_system::GuestSystem;
use crate::place::{Choice, Place};
use guests::Guests;

/// What the guests run, in turn, each against itself.
const WORKLOADS: [&str; 3] = ["redis,seconds=10", "nginx,seconds=10", "pgbench,seconds=10"];

/// Images are built before; what is left are boots, workloads and ends.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// With `--keep` guests run until Ctrl-C; a day is as good as for ever.
const KEEP_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// CPUs for scanning in the minute of quiet after the work: an emulated one does a tenth to a thirtieth of a real one.
const QUIET_SCAN_CPU: f64 = 0.8;

/// What the nested host itself needs besides its guests.
const HOST_MIB: u64 = 2048;

#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// Number of guests; they run redis, nginx and pgbench in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    guests: u16,
    /// Memory of each guest in MiB
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(192..=65_536))]
    memory: u64,
    /// Leave the guests running after the table, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Write what the table shows as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Eight guests of 256 MiB in 1 GiB, four of them busy; then four guests without an operating system that dirty
    /// memory as fast as this machine's processors can
    #[arg(long, conflicts_with_all = ["guests", "memory", "keep"])]
    overcommit: bool,
    /// With --overcommit: only the guests without an operating system
    #[arg(long, requires = "overcommit")]
    native: bool,
    /// Use the nested host even where this machine could run the guests itself
    #[arg(long)]
    nested: bool,
}

pub(crate) fn run(args: &DemoArgs) -> Result<ExitCode> {
    if args.overcommit {
        return overcommit(args);
    }
    let choice = Choice::from(args.nested);
    announce(args, choice)?;
    let system = GuestSystem::prepare()?;
    let memory = HOST_MIB + args.memory * u64::from(args.guests);
    let mut place = Place::choose(choice, memory, None)?;
    let mut argv: Vec<String> = vec![system.levy().display().to_string(), "run".into(), "--json".into()];
    argv.extend(["--count".into(), args.guests.to_string()]);
    argv.extend(["--memory".into(), format!("size={}M", args.memory)]);
    argv.extend(["--deadline".into(), "5m".into(), "--patience".into(), "5m".into()]);
    argv.extend(["--kernel".into(), system.boot().kernel().display().to_string()]);
    argv.extend(["--initrd".into(), system.boot().initramfs().display().to_string()]);
    argv.extend([
        "--disk".into(),
        format!("path={},overlay=on", system.disk().image().display()),
    ]);
    argv.extend(["--cmdline".into(), "root=/dev/vda".into()]);
    for workload in WORKLOADS {
        argv.extend(["--workload".into(), workload.into()]);
    }
    if args.keep {
        argv.push("--keep".into());
    }
    eprintln!("demo: starting {} guests {place}", args.guests);
    let mut guests = Guests::new(place.to_string());
    let deadline = if args.keep { KEEP_DEADLINE } else { DEADLINE };
    let mut shown = false;
    let status = place.run(argv, &[], deadline, &mut |line| {
        guests.heard(line);
        if !shown && guests.all_have_verdicts(usize::from(args.guests)) && args.keep {
            shown = true;
            println!("{}", table::text(&guests));
            eprintln!("demo: the guests run on; Ctrl-C ends them");
        }
    })?;
    if !shown {
        println!("{}", table::text(&guests));
    }
    table::report(&guests).write(args.json.as_deref())?;
    if status != 0 {
        bail!("levy run ended with status {status}: not all guests did well");
    }
    Ok(ExitCode::SUCCESS)
}

/// Has the product measure itself, then the same without kernels at the machine's full speed.
fn overcommit(args: &DemoArgs) -> Result<ExitCode> {
    if !args.native {
        let mut words = vec![format!("--quiet-scan-cpu={QUIET_SCAN_CPU}")];
        if let Some(json) = &args.json {
            words.extend(["--json".into(), json.display().to_string()]);
            words.extend(["--plot".into(), json.with_extension("svg").display().to_string()]);
        }
        bench::levy("overcommit", &words)?;
    }
    let mut words = Vec::new();
    if let Some(json) = &args.json {
        let flat = json.with_extension("flat.json");
        words.extend(["--json".into(), flat.display().to_string()]);
        words.extend(["--plot".into(), flat.with_extension("svg").display().to_string()]);
    }
    bench::native("overcommit-flat", &words)?;
    Ok(ExitCode::SUCCESS)
}

/// Says what will be fetched, built and installed before anything is.
fn announce(args: &DemoArgs, choice: Choice) -> Result<()> {
    let cache = Cache::of_user()?;
    let native = choice == Choice::Probe && Machine::probe().runs_kernels();
    println!("This demo will");
    println!("  - build levy in release mode");
    println!(
        "  - keep in {}: a Debian kernel, an initramfs and a Debian root disk with redis, nginx and PostgreSQL\n    \
         (about 300 MiB of packages the first time, signatures checked; `rm -r` that directory to undo it)",
        cache.root().display()
    );
    println!("  - install mmdebstrap and e2fsprogs with apt-get if they are missing and you are root");
    if !native {
        println!(
            "  - because this machine's KVM runs no stock kernels: fetch QEMU 10 there if none is installed, and boot"
        );
        println!("    an emulated KVM host for the guests (10 to 30 times slower than hardware)");
    }
    println!(
        "  - start {} guests of {} MiB, run redis, nginx and pgbench in them, and take them down\n",
        args.guests, args.memory
    );
    Ok(())
}
