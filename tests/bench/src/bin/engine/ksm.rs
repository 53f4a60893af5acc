//! The rival: the kernel's own page merging, on the same bytes.
#![allow(unsafe_code)]
// UNSAFETY: madvise on memory that this bench owns.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use levy_bench::Ksmd;
use rustix::mm::{Advice, madvise};
use serde::Serialize;

use crate::ram::Ram;
use crate::supervise::{KSM, number, set};

/// Pages per wake-up and the rest between two: fast, so that the bench ends soon, and with few wake-ups per page,
/// which favours KSM. Everything else stays as the kernel has it.
const PAGES_TO_SCAN: &str = "4000";
const SLEEP_MILLISECS: &str = "10";

/// No scan may take longer.
const PATIENCE: Duration = Duration::from_secs(150);

/// How often a measurement that other processes spoilt is repeated.
const ATTEMPTS: usize = 4;

/// How long other processes get to go away.
const WAIT: Duration = Duration::from_secs(300);

/// What KSM did with one data set.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct KsmResult {
    /// Pages freed: beyond the first of each content, and zero pages.
    pub(crate) merged: u64,
    /// Full scans until it had freed 99.5 % of that.
    pub(crate) passes: u64,
    /// CPU of its thread until then, for each page freed.
    pub(crate) cpu_us_per_page: f64,
    /// CPU of one full scan over unchanged memory, per GiB, mean of the five scans after convergence.
    pub(crate) idle_ms_per_gib: f64,
    /// The same once its smart scan has learnt to skip, mean of the last scans measured.
    pub(crate) idle_ripe_ms_per_gib: Option<f64>,
    /// Other processes with mergeable memory: their pages were scanned too.
    pub(crate) other_processes: usize,
}

/// The kernel thread's state at one moment.
#[derive(Debug, Clone, Copy)]
struct Mark {
    scans: u64,
    cpu: Duration,
    merged: u64,
}

/// KSM on this machine.
pub(crate) struct Ksm {
    thread: Ksmd,
    /// Whether idle scans are measured until smart scan has ripened.
    ripen: bool,
}

impl Ksm {
    pub(crate) fn find(ripen: bool) -> Result<Self> {
        if !Path::new(KSM).join("run").exists() {
            bail!(
                "this kernel has no KSM ({KSM} is missing), so there is no rival to measure: run a kernel with CONFIG_KSM=y"
            );
        }
        let thread = Ksmd::find().context("cannot look for ksmd in /proc")?;
        let thread = thread.context("no kernel thread is called ksmd")?;
        thread.cpu().context("cannot read the CPU time of ksmd")?;
        Ok(Self { thread, ripen })
    }

    /// Merges `ram` until nothing more is gained, then watches scans over the unchanged memory. The memory is
    /// unmerged again at the end. Waits until no other process has mergeable memory (virtual machines of QEMU have by
    /// default), and starts anew when one turns up meanwhile: KSM's thread does not tell whose pages it works on.
    pub(crate) fn run(&self, ram: &Ram) -> Result<KsmResult> {
        for _ in 0..ATTEMPTS {
            wait_for_others()?;
            let result = self.run_once(ram)?;
            if result.other_processes == 0 {
                return Ok(result);
            }
            eprintln!("KSM: another process's memory was scanned too; once more");
        }
        bail!(
            "another process's memory was scanned in each of {ATTEMPTS} attempts; stop its virtual machines first"
        )
    }

    fn run_once(&self, ram: &Ram) -> Result<KsmResult> {
        // Unmerges and forgets everything: what KSM remembers of pages at the same addresses would mislead it.
        setting("run", "2")?;
        setting("pages_to_scan", PAGES_TO_SCAN)?;
        setting("sleep_millisecs", SLEEP_MILLISECS)?;
        // Older kernels lack these two; without smart scan every scan is a full one.
        for (name, value) in [("smart_scan", "1"), ("advisor_mode", "none")] {
            if Path::new(KSM).join(name).exists() {
                setting(name, value)?;
            }
        }
        // Zero pages go to the kernel's zero page, as the engine under test does it.
        setting("use_zero_pages", "1")?;
        advise(ram, Advice::LinuxMergeable)?;
        setting("run", "1")?;
        let marks = self.converge()?;
        let before = others();
        let idle = self.idle(ram)?;
        let other_processes = before.max(others());
        setting("run", "2")?;
        advise(ram, Advice::LinuxUnmergeable)?;
        Ok(result(&marks, idle, other_processes))
    }

    /// Scans until two in a row gained less than a thousandth.
    fn converge(&self) -> Result<Vec<Mark>> {
        let mut marks = vec![self.mark()?];
        loop {
            marks.push(self.next_scan(marks[marks.len() - 1])?);
            if let [.., before, _, now] = marks[..]
                && now.merged > 0
                && now.merged - before.merged.min(now.merged) <= now.merged / 1000
            {
                return Ok(marks);
            }
            if marks.len() > 40 {
                bail!("KSM has not converged in 40 scans; is something else writing to mergeable memory?");
            }
        }
    }

    /// CPU per GiB of one scan: the mean of five scans now, and of nine (one period of smart scan's skipping) after
    /// sixteen more.
    fn idle(&self, ram: &Ram) -> Result<(f64, Option<f64>)> {
        let gib = ram.bytes() as f64 / f64::from(1 << 30);
        let mean = |scans: u64| -> Result<f64> {
            let first = self.mark()?;
            let mut last = first;
            while last.scans < first.scans + scans {
                last = self.next_scan(last)?;
            }
            let cpu = (last.cpu - first.cpu).as_secs_f64() * 1e3;
            Ok(cpu / (last.scans - first.scans) as f64 / gib)
        };
        let fresh = mean(5)?;
        let ripe = if self.ripen {
            mean(16)?;
            Some(mean(9)?)
        } else {
            None
        };
        Ok((fresh, ripe))
    }

    fn next_scan(&self, last: Mark) -> Result<Mark> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let mark = self.mark()?;
            if mark.scans > last.scans {
                return Ok(mark);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        bail!("KSM needs more than {PATIENCE:?} for one scan")
    }

    fn mark(&self) -> Result<Mark> {
        let stat = fs::read_to_string("/proc/self/ksm_stat").context("cannot read /proc/self/ksm_stat")?;
        let of = |name: &str| {
            let value = stat
                .lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
            value.unwrap_or(0)
        };
        // A page that is merged counts as merging in its process, the first of each content too.
        let merging = of("ksm_merging_pages");
        let shared = number(Path::new(KSM).join("pages_shared"))?;
        Ok(Mark {
            scans: number(Path::new(KSM).join("full_scans"))?,
            cpu: self.thread.cpu().context("cannot read the CPU time of ksmd")?,
            merged: merging.saturating_sub(shared) + of("ksm_zero_pages"),
        })
    }
}

fn result(marks: &[Mark], idle: (f64, Option<f64>), other_processes: usize) -> KsmResult {
    let (first, last) = (marks[0], marks[marks.len() - 1]);
    let enough = last.merged - last.merged / 200;
    let reached = marks.iter().find(|mark| mark.merged >= enough).unwrap_or(&last);
    KsmResult {
        merged: last.merged,
        passes: reached.scans - first.scans,
        cpu_us_per_page: (reached.cpu - first.cpu).as_secs_f64() * 1e6 / reached.merged as f64,
        idle_ms_per_gib: idle.0,
        idle_ripe_ms_per_gib: idle.1,
        other_processes,
    }
}

fn setting(name: &str, value: &str) -> Result<()> {
    set(Path::new(KSM).join(name), value)
}

fn advise(ram: &Ram, advice: Advice) -> Result<()> {
    for memory in &ram.guests {
        // SAFETY: the range is one mapping that `memory` owns; neither advice changes what its pages hold.
        unsafe { madvise(memory.as_ptr().as_ptr().cast(), memory.len(), advice) }
            .with_context(|| format!("the kernel refuses {advice:?}"))?;
    }
    Ok(())
}

/// Waits until this process is the only one with mergeable memory.
fn wait_for_others() -> Result<()> {
    let start = Instant::now();
    let mut told = false;
    while others() > 0 {
        if start.elapsed() > WAIT {
            bail!(
                "{} other processes have mergeable memory, which KSM would scan too: stop them",
                others()
            );
        }
        if !told {
            eprintln!("KSM: waiting for other processes with mergeable memory to end, at most {WAIT:?}");
            told = true;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// How many other processes have memory that KSM may look at.
fn others() -> usize {
    let own = std::process::id().to_string();
    processes()
        .filter(|dir| dir.file_name().is_some_and(|name| name.to_str() != Some(&own)))
        .filter(|dir| mergeable(&fs::read_to_string(dir.join("ksm_stat")).unwrap_or_default()))
        .count()
}

fn mergeable(ksm_stat: &str) -> bool {
    let is = |name: &str, value: &str| {
        ksm_stat
            .lines()
            .any(|line| line.split_once(' ') == Some((name, value)))
    };
    is("ksm_mergeable:", "yes") || is("ksm_merge_any:", "yes")
}

fn processes() -> impl Iterator<Item = PathBuf> {
    fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| {
        let path = entry.ok()?.path();
        path.file_name()?.to_str()?.parse::<u32>().ok()?;
        Some(path)
    })
}
