//! What a manager costs, and how soon it knows what a guest's process has sent.
//!
//! Guests are processes of their own with real memory, engines and sockets and without a virtual machine; the manager is
//! `levy host`. Idle: 8 guests that are left alone, once everything is merged. Busy: guests whose memory is written to
//! all the time, which merge, break and publish while they report. A report's time runs from its sending to the moment
//! at which the policy knows it.
//!
//! Many: processes that only speak the protocol, of which a few wait for memory all the time. How long do those wait for
//! a round, what does the manager cost, and how long does a list of all guests take?
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use levy_bench::Report;
use simulated::{Guest, GuestOptions, Manager};

/// Guests in the idle part.
const IDLE: usize = 8;

/// Of many guests, this many wait for memory all the time.
const WAITING: usize = 16;

/// Rounds that the manager remembers: after this many it knows of no other.
const ROUNDS: u64 = 120;

/// Lists of all guests that are asked for.
const LISTS: usize = 15;

#[derive(Parser)]
#[command(about = "Manager: CPU with idle guests, and handling times with many busy ones")]
struct Args {
    /// Write the report to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Busy guests
    #[arg(long, default_value_t = 64)]
    guests: usize,
    /// Guests that only speak the protocol
    #[arg(long, default_value_t = 1000)]
    many: usize,
    /// Only these
    #[arg(long)]
    only_many: bool,
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
    if !args.only_many {
        let idle = GuestOptions::new("").rate(0);
        measure(&program, ("idle", IDLE, idle), time, &mut report)?;
        // What many busy writers do to each other on few CPUs is not the manager's doing: each visits few pages.
        let busy = GuestOptions::new("").mib(8).rate(50);
        measure(&program, ("busy", args.guests, busy), time, &mut report)?;
    }
    measure_many(&program, args.many, &mut report)?;
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

/// Processes that are killed when this is dropped.
struct Crowd(Vec<Child>);

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

fn measure_many(program: &Path, count: usize, report: &mut Report) -> anyhow::Result<()> {
    // Each is promised its process and its size; nothing of that is used.
    let manager = Manager::start(program, count as u64 * 30);
    let mut crowd = Crowd(Vec::new());
    for number in 0..count {
        let mut command = Command::new(program);
        command.args(["protocol", "--name", &format!("p{number}"), "--dir"]);
        command.arg(manager.dir());
        if number < WAITING {
            command.arg("--waits");
        }
        crowd.0.push(command.spawn()?);
    }
    simulated::until("all guests' admission", || manager.connected() == count);
    let rounds = || manager.view().rounds.count;
    // Those remembered are of the time before until all are others.
    let begin = rounds();
    simulated::until("quiet after the admissions", || rounds() >= begin + 20);
    let (before, began) = (manager.view(), Instant::now());
    simulated::until("enough rounds", || {
        std::thread::sleep(Duration::from_millis(500));
        rounds() >= before.rounds.count + ROUNDS
    });
    let (after, seconds) = (manager.view(), began.elapsed().as_secs_f64());
    let lists: anyhow::Result<Vec<f64>> = (0..LISTS).map(|_| list(&manager, count)).collect();
    let mut lists = lists?;
    lists.sort_by(f64::total_cmp);

    let ms = |us: u64| us as f64 / 1000.0;
    let cpu = (after.cpu_us - before.cpu_us) as f64 / 1e6 / seconds * 100.0;
    let part = format!("guests_{count}");
    let figures = [
        ("cpu_percent", cpu),
        ("round_gap_p50_ms", ms(after.rounds.gap_p50_us)),
        ("round_gap_p99_ms", ms(after.rounds.gap_p99_us)),
        ("round_gap_max_ms", ms(after.rounds.gap_max_us)),
        ("round_p50_ms", ms(after.rounds.work_p50_us)),
        ("round_max_ms", ms(after.rounds.work_max_us)),
        ("list_ms", lists[LISTS / 2]),
        ("list_max_ms", lists[LISTS - 1]),
        ("report_p99_ms", ms(after.doors.handling_p99_us)),
    ];
    println!("{count} guests that only speak the protocol, {WAITING} of them waiting for memory:");
    for (name, value) in figures {
        println!("  {name:<20} {value:>10.2}");
        report.set(&format!("{part}.{name}"), value);
    }
    report.set(&format!("{part}.waiting"), WAITING);
    report.set(&format!("{part}.refused"), after.doors.refused);
    report.set(&format!("{part}.cut_offs"), after.doors.cut_offs);
    report.set(&format!("{part}.descriptors"), manager.footprint().fds);
    report.set(&format!("{part}.threads"), manager.footprint().threads);
    anyhow::ensure!(
        after.doors.cut_offs == 0 && manager.connected() == count,
        "guests were lost: {:?}",
        after.doors
    );
    Ok(())
}

/// Milliseconds that a list of all guests takes, its bytes read and not looked at.
fn list(manager: &Manager, count: usize) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut stream = UnixStream::connect(levy_protocol::run_dir::api_socket(manager.dir()))?;
    stream.write_all(b"GET /guests HTTP/1.1\r\nHost: levy\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let milliseconds = began.elapsed().as_secs_f64() * 1000.0;
    anyhow::ensure!(answer.len() > count * 500, "a list of {} bytes", answer.len());
    Ok(milliseconds)
}
