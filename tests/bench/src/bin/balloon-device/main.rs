//! How fast the balloon gives memory back, device and driver half in one process.
//!
//! Three ways over the same frames, in turn, in every round: Levy's device; a device that reads frame numbers from
//! the same rings and makes one `madvise` for each, as most peers do; and a bare loop over the runs that the frames of
//! each buffer form, without rings, known in advance. Only the release is timed, not the touching before it.

mod arena;
mod peer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use arena::{Arena, Memory, Pages};
use balloon_driver::driver::{Driver, FRAMES_PER_BUFFER, Line, RANGES_PER_REPORT};
use balloon_driver::features::QueueKind;
use balloon_driver::release::Anonymous;
use balloon_driver::{Balloon, FRAME_SIZE, Frame, Options, Progress, Run, merge_frames};
use clap::Parser;
use levy_bench::{Random, Report, Samples};
use peer::Peer;
use vm_memory::GuestAddress;

#[derive(Parser)]
#[command(
    about = "Inflation and free page reporting in GiB/s, beside one madvise per page and a bare madvise loop"
)]
struct Args {
    /// Write the report to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// 1 GiB instead of 4
    #[arg(long)]
    quick: bool,
}

/// What is measured, and how often.
struct Plan {
    bytes: u64,
    rounds: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let bytes = if args.quick { 1 << 30 } else { 4 << 30 };
    let plan = Plan { bytes, rounds: 3 };
    let mut report = Report::new("balloon-device");
    report.set("bytes", plan.bytes);
    report.set("rounds", plan.rounds);
    println!(
        "{:>12}  {:>10} {:>12} {:>10} {:>10}   GiB/s, median of {}",
        "pattern", "levy", "one by one", "per pfn", "bare", plan.rounds
    );
    inflation(&plan, &mut report)?;
    reporting(&plan, &mut report)?;
    Ok(report.write(args.json.as_deref())?)
}

/// 4 KiB pages, buffers of 256 frame numbers, one buffer at a time as Linux sends them.
fn inflation(plan: &Plan, report: &mut Report) -> Result<()> {
    let arena = Arena::new(plan.bytes, Pages::Small)?;
    for (name, frames) in patterns(&arena) {
        let freed = frames.len() as u64 * FRAME_SIZE;
        let ideal = ideal_runs(&frames);
        let mut speeds = Speeds::default();
        for _ in 0..plan.rounds {
            for way in [Way::Levy, Way::LevySingleCalls, Way::PerPfn, Way::Bare] {
                arena.touch()?;
                let seconds = match way {
                    Way::Levy => inflate(&arena, &frames, Anonymous::new(arena.memory())?)?,
                    Way::LevySingleCalls => inflate(
                        &arena,
                        &frames,
                        Anonymous::new(arena.memory())?.without_vectored_calls(),
                    )?,
                    Way::PerPfn => inflate_one_by_one(&arena, &frames)?,
                    Way::Bare => arena.drop_runs(&ideal)?,
                };
                arena.check_gone(&frames)?;
                speeds.add(way, freed, seconds);
            }
        }
        report.set(&format!("{name}.runs"), ideal.len());
        speeds.conclude(name, report);
    }
    Ok(())
}

/// Huge pages, 32 ranges a report as Linux sends them.
fn reporting(plan: &Plan, report: &mut Report) -> Result<()> {
    let arena = Arena::new(plan.bytes, Pages::Huge)?;
    for (name, block) in [("report_2m", 2u64 << 20), ("report_4m", 4 << 20)] {
        let blocks: Vec<Run> = (0..arena.frames().count() / (block / FRAME_SIZE))
            .rev()
            .filter_map(|at| {
                Run::new(
                    Frame::new(arena.frames().first().number() + at * block / FRAME_SIZE),
                    block / FRAME_SIZE,
                )
            })
            .collect();
        let mut speeds = Speeds::default();
        for _ in 0..plan.rounds {
            for way in [Way::Levy, Way::LevySingleCalls, Way::Bare] {
                arena.touch()?;
                report.set(&format!("{name}.huge_share"), arena.huge_share()?);
                let seconds = match way {
                    Way::Levy => send_reports(&arena, &blocks, Anonymous::new(arena.memory())?)?,
                    Way::LevySingleCalls => send_reports(
                        &arena,
                        &blocks,
                        Anonymous::new(arena.memory())?.without_vectored_calls(),
                    )?,
                    _ => arena.drop_runs(&blocks)?,
                };
                speeds.add(way, plan.bytes, seconds);
            }
        }
        speeds.conclude(name, report);
    }
    Ok(())
}

/// The orders in which a guest may give its frames away.
fn patterns(arena: &Arena) -> Vec<(&'static str, Vec<u32>)> {
    let all = || (arena.frames().first().number()..arena.frames().end().number()).map(|frame| frame as u32);
    let mut shuffled: Vec<u32> = all().collect();
    let mut random = Random::new(1);
    for at in (1..shuffled.len()).rev() {
        shuffled.swap(at, random.place(at + 1));
    }
    vec![
        ("contiguous", all().rev().collect()),
        ("shuffled", shuffled),
        ("every_second", all().step_by(2).collect()),
    ]
}

/// The runs that the frames of each buffer form.
fn ideal_runs(frames: &[u32]) -> Vec<Run> {
    let mut runs = Vec::new();
    for buffer in frames.chunks(FRAMES_PER_BUFFER) {
        merge_frames(&mut buffer.to_vec(), &mut runs);
    }
    runs
}

/// A device and its driver on the arena.
fn pair(arena: &Arena, port: Anonymous) -> Result<(Balloon<Memory, Anonymous>, Driver<Memory>)> {
    let mut device = Balloon::new(Options::default(), port);
    let features = device.features();
    let driver = Driver::new(arena.memory(), GuestAddress(0), features)?;
    // Nothing is on the queues yet.
    let _ = device.activate(
        features,
        arena.memory(),
        driver.queues()?,
        Arc::new(Line::default()),
    )?;
    Ok((device, driver))
}

fn inflate(arena: &Arena, frames: &[u32], port: Anonymous) -> Result<f64> {
    let (mut device, mut driver) = pair(arena, port)?;
    let start = Instant::now();
    for buffer in frames.chunks(FRAMES_PER_BUFFER) {
        let sent = driver.send_frames(QueueKind::Inflate, buffer)?;
        while device.handle_queue_event(sent.queue)? == Progress::More {}
        driver.reap(QueueKind::Inflate)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    ensure!(
        device.ballooned() == frames.len() as u64,
        "{} frames in the balloon",
        device.ballooned()
    );
    Ok(seconds)
}

fn inflate_one_by_one(arena: &Arena, frames: &[u32]) -> Result<f64> {
    let mut driver = Driver::new(arena.memory(), GuestAddress(0), Options::default().features())?;
    let queue = driver.ring(QueueKind::Inflate)?.device_queue()?;
    let mut peer = Peer::new(arena.memory(), queue);
    let start = Instant::now();
    for buffer in frames.chunks(FRAMES_PER_BUFFER) {
        driver.send_frames(QueueKind::Inflate, buffer)?;
        peer.handle_inflate(arena)?;
        driver.reap(QueueKind::Inflate)?;
    }
    Ok(start.elapsed().as_secs_f64())
}

fn send_reports(arena: &Arena, blocks: &[Run], port: Anonymous) -> Result<f64> {
    let (mut device, mut driver) = pair(arena, port)?;
    let start = Instant::now();
    for ranges in blocks.chunks(RANGES_PER_REPORT) {
        let sent = driver.send_report(ranges)?;
        while device.handle_queue_event(sent.queue)? == Progress::More {}
        driver.reap(QueueKind::Reporting)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    ensure!(
        device.counters().released == arena.frames().count(),
        "{:?}",
        device.counters()
    );
    Ok(seconds)
}

/// Who releases.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Levy,
    /// Levy without `process_madvise`, as on a kernel before 6.13.
    LevySingleCalls,
    PerPfn,
    Bare,
}

/// GiB/s of each way.
#[derive(Default)]
struct Speeds([Samples; 4]);

impl Speeds {
    fn add(&mut self, way: Way, bytes: u64, seconds: f64) {
        self.0[way as usize].push(bytes as f64 / f64::from(1 << 30) / seconds);
    }

    fn conclude(&self, name: &str, report: &mut Report) {
        let median = |way: Way| self.0[way as usize].median().median;
        let keys = [
            (Way::Levy, "levy"),
            (Way::LevySingleCalls, "levy_single_calls"),
            (Way::PerPfn, "per_pfn"),
            (Way::Bare, "bare"),
        ];
        for (way, key) in keys {
            if !self.0[way as usize].is_empty() {
                report.set(&format!("{name}.{key}_gib_s"), median(way));
            }
        }
        let (levy, bare) = (median(Way::Levy), median(Way::Bare));
        report.set(&format!("{name}.levy_over_bare"), levy / bare);
        if !self.0[Way::PerPfn as usize].is_empty() {
            report.set(&format!("{name}.levy_over_per_pfn"), levy / median(Way::PerPfn));
        }
        let cell = |way: Way| format!("{:.2}", median(way)).replace("NaN", "-");
        println!(
            "{name:>12}  {:>10} {:>12} {:>10} {:>10}",
            cell(Way::Levy),
            cell(Way::LevySingleCalls),
            cell(Way::PerPfn),
            cell(Way::Bare)
        );
    }
}
