//! What does a balloon of 60,000 pages cost a real guest of 512 MiB and its host, and is the memory really back? How
//! long after the end of a file of 150 MiB does free page reporting return it, with no request?
//!
//! Times are those of the whole product: the controller's cautious start is in them.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use guest_images::agent_protocol::{Action, Report as Word, Workload};
use levy_bench::Report;
use levy_launcher::{OneGuest, SessionFiles};
use levy_protocol::control::Request;
use serde_json::Value;

/// Anything that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(240);
/// How often the VMM is asked while something is waited for.
const LOOK: Duration = Duration::from_millis(10);
/// The guest's memory.
const GUEST_MIB: u64 = 512;
/// The balloon: the fewest whole MiB that hold 60,000 pages.
const BALLOON_MIB: u64 = 235;
/// What the guest keeps when everything else is written to before.
const KEEP_MIB: u64 = 40;
/// The file.
const FILE_MIB: u64 = 150;
/// When it should be back.
const REPORTED: Duration = Duration::from_secs(5);

#[derive(Parser)]
struct Args {
    /// The levy binary
    #[arg(long)]
    levy: PathBuf,
    /// Unused here: every bench with guests is given it
    #[arg(long, hide = true)]
    qemu: Option<String>,
    /// Kernel, a bzImage
    #[arg(long)]
    kernel: PathBuf,
    /// Initramfs with the agent
    #[arg(long)]
    initrd: PathBuf,
    /// Write the report here
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut report = Report::new("balloon-guest");
    report.set("guest_mib", GUEST_MIB);
    report.set("balloon_pages", BALLOON_MIB * 256);
    for option in ["init_on_alloc=1", "init_on_alloc=0"] {
        eprintln!("inflating with {option}");
        inflate(&args, option, &mut report).with_context(|| format!("with {option}"))?;
    }
    eprintln!("reporting a deleted file");
    reporting(&args, &mut report)?;
    Ok(report.write(args.json.as_deref())?)
}

/// Inflates and deflates the balloon of a guest whose memory was all written to.
fn inflate(args: &Args, option: &str, report: &mut Report) -> Result<()> {
    let mut guest = Guest::start(args, option, "free_page_reporting=off")?;
    guest.touch_everything()?;
    let (before, cpu) = (guest.memory()?, guest.balloon_cpu()?);
    let inflated = guest.balloon(BALLOON_MIB)?;
    let busy = guest.balloon_cpu()?.saturating_sub(cpu);
    let after = guest.memory()?;
    let figures = guest.ask(&look())?;
    let deflated = guest.balloon(0)?;
    let size = BALLOON_MIB * 1024;
    let fell =
        |name: &str| -> Result<u64> { Ok(number(&before[name])?.saturating_sub(number(&after[name])?)) };
    let (private, pss) = (fell("guest_private_kib")?, fell("guest_pss_kib")?);
    let share = busy.as_secs_f64() / inflated.as_secs_f64();
    let key = |name: &str| format!("{}.{name}", option.replace('=', "_"));
    report.set(&key("inflate_s"), inflated.as_secs_f64());
    report.set(&key("deflate_s"), deflated.as_secs_f64());
    report.set(&key("host_cpu_s"), busy.as_secs_f64());
    report.set(&key("host_share"), share);
    report.set(&key("balloon_kib"), size);
    report.set(&key("private_returned_kib"), private);
    report.set(&key("pss_returned_kib"), pss);
    report.set(&key("returned_part"), private as f64 / size as f64);
    report.set(&key("buffers"), &figures["inflate_buffers"]);
    report.set(&key("runs"), &figures["released_runs"]);
    println!(
        "{option}: inflated in {:.2} s (host {:.3} s CPU, {:.1} %), deflated in {:.2} s; private {private} KiB, PSS \
         {pss} KiB of {size} KiB returned ({:.1} %)",
        inflated.as_secs_f64(),
        busy.as_secs_f64(),
        share * 100.0,
        deflated.as_secs_f64(),
        private as f64 / size as f64 * 100.0
    );
    Ok(())
}

/// Deletes a file in a guest that the host asks for nothing.
fn reporting(args: &Args, report: &mut Report) -> Result<()> {
    let mut guest = Guest::start(args, "init_on_alloc=0", "free_page_reporting=on")?;
    guest.run(&format!("file mib={FILE_MIB} hold=3 seconds=1"))?;
    let named = |name: &'static str| move |word: &Word| matches!(word, Word::Stats { name: what, .. } if what == name);
    guest.until(named("written"))?;
    let resident = |guest: &Guest| number(&guest.memory()?["guest_rss_kib"]);
    let with = resident(&guest)?;
    guest.until(named("deleted"))?;
    let deleted = Instant::now();
    let mut times = [None; 2];
    let mut back = 0;
    while deleted.elapsed() < REPORTED {
        std::thread::sleep(LOOK * 5);
        back = with.saturating_sub(resident(&guest)?);
        for (time, percent) in times.iter_mut().zip([90, 95]) {
            if time.is_none() && back * 100 >= FILE_MIB * 1024 * percent {
                *time = Some(deleted.elapsed().as_secs_f64());
            }
        }
    }
    let told =
        |time: Option<f64>| time.map_or_else(|| "more".to_owned(), |seconds| format!("{seconds:.2} s"));
    report.set("reporting.file_mib", FILE_MIB);
    report.set("reporting.returned_kib_after_5_s", back);
    report.set(
        "reporting.returned_part_after_5_s",
        back as f64 / (FILE_MIB * 1024) as f64,
    );
    report.set("reporting.seconds_to_90_percent", times[0]);
    report.set("reporting.seconds_to_95_percent", times[1]);
    println!(
        "{FILE_MIB} MiB deleted: {back} KiB back after 5 s; 90 % after {}, 95 % after {}",
        told(times[0]),
        told(times[1])
    );
    Ok(())
}

/// A running guest; ended when dropped.
struct Guest {
    session: OneGuest,
    _directory: tempfile::TempDir,
}

impl Guest {
    fn start(args: &Args, option: &str, balloon: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new(&args.levy);
        command
            .args(["vmm", "--name", "bench", "--cmdline", option])
            .arg("--kernel")
            .arg(&args.kernel)
            .arg("--initrd")
            .arg(&args.initrd)
            .args(["--memory", &format!("size={GUEST_MIB}M"), "--balloon", balloon]);
        let files = SessionFiles::numbered(directory.path(), 0);
        let session = OneGuest::start(command, files).context("cannot start levy vmm")?;
        let mut guest = Self {
            session,
            _directory: directory,
        };
        guest.until(|word| matches!(word, Word::Ready { .. }))?;
        Ok(guest)
    }

    fn ask(&self, request: &Request) -> Result<Value> {
        Ok(self.session.ask_within(DEADLINE, request)?)
    }

    fn memory(&self) -> Result<Value> {
        Ok(self.ask(&Request::Stats)?["memory"].clone())
    }

    /// Waits for a report of the agent.
    fn until(&mut self, wanted: impl Fn(&Word) -> bool) -> Result<Word> {
        let until = Instant::now() + DEADLINE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.session.next(left)?.report {
                Word::Error { message } => bail!("the agent says: {message}"),
                word if wanted(&word) => return Ok(word),
                _ => {}
            }
        }
    }

    fn run(&mut self, words: &str) -> Result<()> {
        let mut words = words.split_whitespace();
        let workload = Workload::from_words(words.next().unwrap_or_default(), words);
        self.session
            .command(Action::Run(workload.map_err(anyhow::Error::msg)?))?;
        Ok(())
    }

    /// Has a program write to all available memory, and end.
    fn touch_everything(&mut self) -> Result<()> {
        self.session.command(Action::Meminfo)?;
        let Word::Done { values } = self.until(|word| matches!(word, Word::Done { .. }))? else {
            bail!("no answer")
        };
        let available = number(&values["MemAvailable"])? / 1024;
        self.run(&format!(
            "fill mib={} seconds=1",
            available.saturating_sub(KEEP_MIB)
        ))?;
        match self.until(|word| matches!(word, Word::Verdict(_)))? {
            Word::Verdict(verdict) if verdict.ok => Ok(()),
            other => bail!("memory could not be written to: {other:?}"),
        }
    }

    /// Asks for a balloon and says how long it took.
    fn balloon(&self, mib: u64) -> Result<Duration> {
        let began = Instant::now();
        self.ask(&Request::Balloon {
            amount_mib: Some(mib),
            deflate_on_oom: None,
            stats_polling_interval_s: None,
        })?;
        loop {
            let figures = self.ask(&look())?;
            if figures["ballooned_pages"] == mib * 256 {
                return Ok(began.elapsed());
            }
            if began.elapsed() > DEADLINE {
                bail!("the balloon does not reach {mib} MiB: {figures}");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// CPU time of the device's thread.
    fn balloon_cpu(&self) -> Result<Duration> {
        for task in std::fs::read_dir(format!("/proc/{}/task", self.session.pid()))? {
            let task = task?.path();
            if std::fs::read_to_string(task.join("comm"))
                .unwrap_or_default()
                .trim()
                == "balloon"
            {
                let text = std::fs::read_to_string(task.join("schedstat"))?;
                let nanoseconds = text.split_whitespace().next().unwrap_or_default().parse()?;
                return Ok(Duration::from_nanos(nanoseconds));
            }
        }
        bail!("the vmm has no thread called balloon")
    }
}

/// What changes nothing and tells the balloon's figures.
fn look() -> Request {
    Request::Balloon {
        amount_mib: None,
        deflate_on_oom: None,
        stats_polling_interval_s: None,
    }
}

fn number(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("{value} is no number"))
}
