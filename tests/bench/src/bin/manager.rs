//! What a manager costs, and how soon it knows what a guest's process has sent.
//!
//! Guests are processes of their own with real memory, engines and sockets and without a virtual machine; the manager is
//! `levy host`. Idle: 8 guests that are left alone, once everything is merged. Busy: guests whose memory is written to
//! all the time, which merge, break and publish while they report. A report's time runs from its sending to the moment
//! at which the policy knows it.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bench::Report;
use clap::Parser;
use simulated::{Guest, GuestOptions, Manager};

/// Guests in the idle part.
const IDLE: usize = 8;

#[derive(Parser)]
#[command(about = "Manager: CPU with idle guests, and handling times with many busy ones")]
struct Args {
    /// Write the report to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Busy guests
    #[arg(long, default_value_t = 64)]
    guests: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Shorter measurements
    #[arg(long)]
    quick: bool,
    #[command(subcommand)]
    process: Option<simulated::Command>,
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    // Each guest, and the manager, is this program once more.
    if let Some(process) = args.process.take() {
        return process.run();
    }
    if args.quick {
        args.seconds = args.seconds.min(10);
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manager: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let program = std::env::current_exe()?;
    let time = Duration::from_secs(args.seconds);
    let mut report = Report::new("manager");
    println!(
        "{:<24} {:>10} {:>8} {:>8} {:>8} {:>8}",
        "", "CPU %", "reports", "p50 ms", "p99 ms", "max ms"
    );
    let idle = GuestOptions::new("").rate(0);
    measure(&program, ("idle", IDLE, idle), time, &mut report)?;
    // What many busy writers do to each other on few CPUs is not the manager's doing: each visits few pages.
    let busy = GuestOptions::new("").mib(8).rate(50);
    measure(&program, ("busy", args.guests, busy), time, &mut report)?;
    Ok(report.write(args.json.as_deref())?)
}

fn measure(
    program: &Path,
    (part, count, options): (&str, usize, GuestOptions),
    time: Duration,
    report: &mut Report,
) -> anyhow::Result<()> {
    let manager = Manager::start(program, 2048);
    let mut guests: Vec<_> = (0..count)
        .map(|number| {
            Guest::start(
                program,
                manager.dir(),
                options.clone().named(&format!("{part}-{number}")),
            )
        })
        .collect();
    eprintln!("manager: {count} guests have started; waiting until they have merged what they can");
    let merged = |guest: &Guest| guest.status().shared > 256;
    simulated::until("merging", || guests.iter().all(merged));
    std::thread::sleep(Duration::from_secs(10));

    let (before, began) = (manager.client().host()?, Instant::now());
    std::thread::sleep(time);
    let (after, seconds) = (manager.client().host()?, began.elapsed().as_secs_f64());
    let cpu = (after.cpu_us - before.cpu_us) as f64 / 1e6 / seconds * 100.0;
    let doors = after.doors;
    let ms = |us: u64| us as f64 / 1000.0;
    println!(
        "{:<24} {cpu:>10.2} {:>8} {:>8.2} {:>8.2} {:>8.2}",
        format!("{count} guests, {part}"),
        doors.reports - before.doors.reports,
        ms(doors.handling_p50_us),
        ms(doors.handling_p99_us),
        ms(doors.handling_max_us),
    );
    report.set(&format!("{part}.guests"), count);
    report.set(&format!("{part}.cpu_percent"), cpu);
    report.set(&format!("{part}.reports"), doors.reports - before.doors.reports);
    report.set(&format!("{part}.p50_ms"), ms(doors.handling_p50_us));
    report.set(&format!("{part}.p99_ms"), ms(doors.handling_p99_us));
    report.set(&format!("{part}.max_ms"), ms(doors.handling_max_us));
    report.set(&format!("{part}.manager_kib"), after.spent.manager_bytes >> 10);
    let wrong: u64 = guests.iter_mut().map(|guest| guest.check().wrong).sum();
    report.set(&format!("{part}.wrong_pages"), wrong);
    anyhow::ensure!(wrong == 0, "{wrong} words were wrong");
    Ok(())
}
