//! The manager, the guests' processes, and the account of both.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use allocator::Pages;
use anyhow::{Context, Result, bail};
use levy_bench::Report;
use levy_bench::Sample;
use levy_bench::overcommit::{Accounting, figure};
use levy_manager::api;
use levy_manager::host::Host;
use levy_manager::manager::Change;
use levy_manager::policy::Settings;
use levy_protocol::run_dir::Sockets;
use serde::Serialize;

use crate::Args;
use crate::guest::{MIN_PART, Word};

/// After a budget was cut, this long may pass until it holds.
const CUT_GRACE: f64 = 5.0;

/// How long a guest may take to verify its memory.
const PATIENCE: Duration = Duration::from_secs(180);

/// One guest's process; killed when dropped.
struct FlatGuest {
    child: Child,
    orders: Option<ChildStdin>,
    words: Receiver<Word>,
}

impl FlatGuest {
    fn start(number: u16, dir: &Path, args: &Args, alone: bool) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--size")
            .arg(args.size.to_string())
            .arg("--swap")
            .arg(&args.swap)
            .arg("--guest")
            .arg(number.to_string())
            .arg(dir)
            .args(alone.then_some("--alone"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a guest's process")?;
        let (orders, output) = (child.stdin.take(), child.stdout.take().context("piped")?);
        let (sender, words) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Ok(word) = serde_json::from_str(&line) else {
                    return;
                };
                if sender.send(word).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, orders, words })
    }

    fn hear(&self) -> Result<Word> {
        self.words
            .recv_timeout(PATIENCE)
            .context("a guest's process says nothing more")
    }

    fn tell(&mut self, order: &str) -> Result<()> {
        let orders = self.orders.as_mut().context("the guest was told to end")?;
        Ok(writeln!(orders, "{order}")?)
    }

    fn count(&mut self) -> Result<(u64, u64)> {
        self.tell("count")?;
        match self.hear()? {
            Word::Counted { filled, changed } => Ok((filled, changed)),
            word => bail!("a guest's process says {word:?}"),
        }
    }
}

impl Drop for FlatGuest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What happened in one part of the run.
#[derive(Debug, Serialize)]
struct Part {
    name: &'static str,
    from: f64,
    to: f64,
    /// Pages filled and changed per second by each guest.
    filled_per_second: Vec<f64>,
    changed_per_second: Vec<f64>,
}

struct Run {
    began: Instant,
    host: Host,
    client: levy_launcher::api_client::Client,
    guests: Vec<FlatGuest>,
    samples: Vec<Sample>,
    parts: Vec<Part>,
}

impl Run {
    /// A sample each second until `seconds` have passed.
    fn part(&mut self, name: &'static str, seconds: u64) -> Result<()> {
        eprintln!("overcommit-flat: {name}, {seconds} s");
        let before = self.counts()?;
        let start = Instant::now();
        for second in 1..=seconds {
            let due = start + Duration::from_secs(second);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            self.sample()?;
        }
        let after = self.counts()?;
        let elapsed = start.elapsed().as_secs_f64();
        let rates = |of: fn(&(u64, u64)) -> u64| {
            let pairs = before.iter().zip(&after);
            pairs
                .map(|(before, after)| (of(after) - of(before)) as f64 / elapsed)
                .collect()
        };
        let to = self.began.elapsed().as_secs_f64();
        self.parts.push(Part {
            name,
            from: to - elapsed,
            to,
            filled_per_second: rates(|counts| counts.0),
            changed_per_second: rates(|counts| counts.1),
        });
        Ok(())
    }

    fn counts(&mut self) -> Result<Vec<(u64, u64)>> {
        self.guests.iter_mut().map(FlatGuest::count).collect()
    }

    fn sample(&mut self) -> Result<()> {
        let (host, guests) = (self.client.host()?, self.client.guests()?);
        if let Some(gone) = self
            .guests
            .iter_mut()
            .find_map(|guest| guest.child.try_wait().transpose())
        {
            bail!("a guest's process ended: {}", gone?);
        }
        let mut sample = Sample::of(self.began.elapsed().as_secs_f64(), &host, &guests);
        // By the kernel's count now, not by the manager's at its last round.
        let held = |pid: u32| {
            levy_protocol::process_memory::Held::of(pid).map_or(0, levy_protocol::process_memory::Held::total)
        };
        for (sample, guest) in sample.guests.iter_mut().zip(&guests) {
            sample.held_bytes = held(guest.pid);
        }
        let guests: u64 = sample.guests.iter().map(|guest| guest.held_bytes).sum();
        sample.used_bytes = guests + sample.pools_bytes + held(std::process::id());
        self.samples.push(sample);
        Ok(())
    }

    fn set_budget(&self, mib: u64) -> Result<()> {
        let settings = Settings {
            budget: Pages::from_mib(mib),
            ..*self.host.registry().policy().settings()
        };
        Ok(self.host.change(Change::Settings(settings))?)
    }

    fn tell_second_half(&mut self, order: &str) -> Result<()> {
        let half = self.guests.len() / 2;
        self.guests[half..]
            .iter_mut()
            .try_for_each(|guest| guest.tell(order))
    }
}

/// Runs the bench; fails when a guest does.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let dir = tempfile::tempdir()?;
    let settings = Settings::new(Pages::from_mib(args.budget));
    let host = Host::open(
        Sockets::in_dir(dir.path()),
        settings,
        levy_manager::backing(&args.swap)?,
    )?;
    let _api = api::serve(host.clone(), dir.path())?;
    let rounds = host.clone();
    std::thread::spawn(move || rounds.run());
    let rival = rival(args, dir.path())?;
    let mut run = Run {
        began: Instant::now(),
        client: levy_launcher::api_client::Client::at(dir.path()),
        host,
        guests: Vec::new(),
        samples: Vec::new(),
        parts: Vec::new(),
    };
    for number in 0..args.guests {
        run.guests
            .push(FlatGuest::start(number, dir.path(), args, false)?);
    }
    for guest in &run.guests {
        guest.hear()?;
    }
    run.part("all at full speed", args.seconds)?;
    run.tell_second_half("rest")?;
    run.part("half of them rest", args.seconds)?;
    run.tell_second_half("work")?;
    run.part("all again", args.seconds)?;
    let cut = run.began.elapsed().as_secs_f64();
    let smaller = args.budget * 3 / 4;
    run.set_budget(smaller)?;
    run.part("three quarters of the budget", args.seconds)?;
    for guest in &mut run.guests {
        guest.orders = None;
    }
    let mut verdicts = Vec::new();
    for guest in &run.guests {
        verdicts.push(guest.hear()?);
    }
    run.host.close();
    let mut report = report(args, &run, cut, &verdicts);
    println!("a guest alone, unmanaged, in plenty: {rival:?}");
    report.set("rival", rival);
    report.write(args.json.as_deref())?;
    if let Some(file) = &args.plot {
        figure("FlatGuest guests at full speed in a budget", &run.samples).write(file)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One guest without engine, manager and limits: what this machine's KVM lets a guest do.
fn rival(args: &Args, dir: &Path) -> Result<Part> {
    eprintln!("overcommit-flat: a guest alone, 5 s");
    let mut guest = FlatGuest::start(0, dir, args, true)?;
    guest.hear()?;
    // The first touches cost what memory costs; what comes after them is the guest's own speed.
    let (start, mut counts) = (Instant::now(), Vec::new());
    for second in 0..=5 {
        let due = start + Duration::from_secs(second);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        counts.push(guest.count()?);
    }
    let rates = |of: fn(&(u64, u64)) -> u64| {
        counts
            .windows(2)
            .map(|pair| (of(&pair[1]) - of(&pair[0])) as f64)
            .collect()
    };
    Ok(Part {
        name: "one guest, unmanaged, second by second",
        from: 0.0,
        to: start.elapsed().as_secs_f64(),
        filled_per_second: rates(|counts| counts.0),
        changed_per_second: rates(|counts| counts.1),
    })
}

fn report(args: &Args, run: &Run, cut: f64, verdicts: &[Word]) -> Report {
    let min = (args.size << 20) / MIN_PART;
    let after_cut = |sample: &&Sample| sample.seconds >= cut;
    let judged = run
        .samples
        .iter()
        .filter(|sample| !after_cut(sample) || sample.seconds > cut + CUT_GRACE);
    let accounting = Accounting::of(&judged.cloned().collect::<Vec<_>>(), min);
    let fits = run
        .samples
        .iter()
        .filter(after_cut)
        .find(|sample| sample.used_bytes as f64 <= sample.budget_bytes as f64 * 1.02);
    println!("{accounting:#?}");
    for part in &run.parts {
        println!("{part:?}");
    }
    for verdict in verdicts {
        println!("{verdict:?}");
    }
    let mut report = Report::new("overcommit-flat");
    report.set("guests", args.guests);
    report.set("guest_mib", args.size);
    report.set("budget_mib", args.budget);
    report.set("guests_ok", verdicts.len());
    report.set("budget_exceeded_samples", accounting.budget_exceeded_samples);
    report.set("ledger", accounting);
    report.set(
        "seconds_until_cut_budget_held",
        fits.map(|sample| sample.seconds - cut),
    );
    report.set("parts", &run.parts);
    report.set("verdicts", verdicts);
    report.set("samples", &run.samples);
    report
}
