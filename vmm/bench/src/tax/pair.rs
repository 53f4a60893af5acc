//! The two guests, and how an arm is played with them.

use std::time::Duration;

use allocator::{Pages, Tax};
use serde::Serialize;

use super::arm::{Arm, Holding};
use super::{Schedule, closed_form};
use crate::{Guest, GuestSample, Params, RunId, Sample, Testbed, TestbedError};
use levy_machine::config::{MemoryConfig, SharingConfig};
use levy_manager::policy::{Sampling, Settings};
use levy_protocol::control::Request;

/// The disks' latency where the user named none: a disk of its own, when a host's cache would answer at once.
const LATENCY: Duration = Duration::from_millis(5);
/// How often the disks' counters are read.
const LOOK: Duration = Duration::from_secs(5);
/// A sample shows an idle guest's last work for this many periods; sizes are not believed to be at rest before.
const LEAST_PERIODS: u32 = 2;
/// After this many periods the arm is measured as it is.
const MOST_PERIODS: u32 = 6;
/// Sizes are at rest when they and their targets stay within this part of a guest's memory for two periods. Targets
/// follow samples of 100 pages, whose error alone moves them by as much.
const AT_REST: f64 = 1.0 / 20.0;
/// What is read at a time: what the kernel reads ahead, so that a miss brings as much as it can.
const BLOCK_KIB: u64 = 128;
/// Both files have to be written first, by one emulated CPU.
const WRITTEN: Duration = Duration::from_secs(600);

/// Names of the guests.
pub(super) const IDLE: &str = "idle";
pub(super) const BUSY: &str = "busy";

/// The testbed with both guests.
pub(super) struct TaxedPair {
    testbed: Testbed,
    idle: Guest,
    busy: Guest,
    work: RunId,
    /// How the idle guest fills its memory.
    filling: String,
    pub(super) setting: Setting,
    schedule: Schedule,
    reads: Vec<Reads>,
}

/// What stays the same in both arms.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Setting {
    pub(super) guest_mib: f64,
    /// What the plan hands out: private memory of both guests.
    pub(super) memory_mib: f64,
    pub(super) disk_latency_ms: f64,
    /// What the busy guest does.
    pub(super) work: String,
    pub(super) sample_seconds: f64,
    pub(super) rebalance_seconds: f64,
    /// What the closed form gives the idle and the busy guest, untaxed and taxed, MiB.
    pub(super) closed_form_untaxed: (f64, f64),
    pub(super) closed_form_taxed: (f64, f64),
}

/// Reads from each guest's disk until a moment of the testbed.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Reads {
    pub(super) seconds: f64,
    pub(super) idle: u64,
    pub(super) busy: u64,
}

impl TaxedPair {
    /// Starts both, fills the idle one, and has the other begin its work.
    pub(super) fn start(
        params: &Params,
        schedule: Schedule,
        work: Option<&str>,
    ) -> Result<Self, TestbedError> {
        let guest = own_disk(params)?;
        let size = guest.memory.bytes >> 20;
        let work = match work {
            Some(words) => words.to_owned(),
            // With the kernel and the agent, nine tenths of the guest's memory.
            None => format!("reader mib={} block_kib={BLOCK_KIB}", size * 11 / 16),
        };
        let setting = setting(&guest.memory, guest.disk[0].latency, work.clone(), schedule)?;
        let settings = settings(params, &setting, schedule)?;
        let mut testbed = Testbed::open(params, settings)?;
        let idle = testbed.start(IDLE, &guest)?;
        let busy = testbed.start(BUSY, &guest)?;
        testbed.ready(&[idle, busy])?;
        let filling = format!(
            "reader mib={} block_kib={BLOCK_KIB} passes=1 seed=2",
            size * 3 / 4
        );
        let filled = testbed.run(idle, &filling)?;
        let work = testbed.run(busy, &endless(&work))?;
        testbed.say("both guests write their files");
        testbed.verdict(filled)?;
        testbed.until(WRITTEN, "the busy guest works", |testbed| {
            (!testbed.run_of(work).ticks.is_empty()).then_some(())
        })?;
        Ok(Self {
            testbed,
            idle,
            busy,
            work,
            filling,
            setting,
            schedule,
            reads: Vec::new(),
        })
    }

    /// One arm: sets the tax, waits until the sizes are at rest, and measures. What a higher tax took from the idle guest
    /// it does not ask for by itself; so before a lower one counts, it reads its file again.
    pub(super) fn measure(&mut self, repeat: u32, tax_percent: f64) -> Result<Arm, TestbedError> {
        self.testbed.say(&format!("repeat {repeat}, tax {tax_percent} %"));
        let set = self.testbed.seconds();
        let tax = tax_of(tax_percent)?;
        let before = self.testbed.host().registry().policy().settings().tax;
        self.testbed.set(|settings| settings.tax = tax)?;
        if tax < before {
            let filled = self.testbed.run(self.idle, &self.filling)?;
            self.testbed.verdict(filled)?;
        }
        let settled = self.settle()?;
        self.fit()?;
        let before = self.look()?;
        self.watch(self.schedule.measure)?;
        let after = self.look()?;
        let time = after.seconds - before.seconds;
        let span = (before.seconds, after.seconds);
        let rate = self.testbed.run_of(self.work).rate_between(span.0, span.1);
        let rate = rate.ok_or_else(|| TestbedError::Impossible("the busy guest says nothing".to_owned()))?;
        let holding = |name| Holding::between(self.testbed.samples(), name, span);
        Ok(Arm {
            repeat,
            tax_percent,
            set,
            from: span.0,
            to: span.1,
            settled,
            rate,
            misses_per_operation: (after.busy - before.busy) as f64 / (rate * time).max(1.0),
            misses_per_second: (after.busy - before.busy) as f64 / time,
            idle_reads_per_second: (after.idle - before.idle) as f64 / time,
            idle: holding(IDLE),
            busy: holding(BUSY),
        })
    }

    /// Ends the busy guest's work; it has checked what it read.
    pub(super) fn end(&mut self) -> Result<(), TestbedError> {
        self.testbed.stop_run(self.work)?;
        self.testbed.verdict(self.work).map(|_| ())
    }

    /// Everything sampled so far, once a second.
    pub(super) fn samples(&self) -> &[Sample] {
        self.testbed.samples()
    }

    /// The disks' counters over time.
    pub(super) fn reads(&self) -> &[Reads] {
        &self.reads
    }

    /// The busy guest's progress: seconds of the testbed, and operations per second.
    pub(super) fn rates(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        let ticks = &self.testbed.run_of(self.work).ticks;
        ticks.iter().map(|tick| (tick.seconds, tick.rate))
    }

    /// Waits until both sizes are at rest; says whether they are.
    fn settle(&mut self) -> Result<bool, TestbedError> {
        let from = self.testbed.seconds();
        let period = self.schedule.sample.as_secs_f64();
        loop {
            self.watch(LOOK)?;
            self.fit()?;
            let waited = self.testbed.seconds() - from;
            let at_rest = self.is_at_rest(2.0 * period);
            if waited >= period * f64::from(LEAST_PERIODS) && at_rest {
                return Ok(true);
            }
            if waited >= period * f64::from(MOST_PERIODS) {
                return Ok(false);
            }
        }
    }

    /// Whether no guest's size or target has changed by much in the last `window` seconds.
    fn is_at_rest(&self, window: f64) -> bool {
        let since = self.testbed.seconds() - window;
        let range = |name: &'static str, of: fn(&GuestSample) -> u64| {
            let sizes = || {
                let recent = self.testbed.samples().iter().rev();
                recent
                    .take_while(|sample| sample.seconds >= since)
                    .filter_map(move |sample| sample.guest(name))
                    .map(|guest| of(guest) as f64 / f64::from(1 << 20))
            };
            sizes().fold(0.0, f64::max) - sizes().fold(f64::MAX, f64::min)
        };
        [IDLE, BUSY].iter().all(|name| {
            let size = range(name, |guest| guest.memory.private_bytes);
            let target = range(name, |guest| guest.target_bytes.unwrap_or_default());
            size.max(target) <= self.setting.guest_mib * AT_REST
        })
    }

    /// The plan hands out the setting's memory.
    fn fit(&self) -> Result<(), TestbedError> {
        self.testbed
            .hand_out(Pages::new((self.setting.memory_mib * 256.0) as u64))
    }

    /// Lets time pass and reads the counters meanwhile.
    fn watch(&mut self, time: Duration) -> Result<(), TestbedError> {
        let until = self.testbed.seconds() + time.as_secs_f64();
        loop {
            let left = until - self.testbed.seconds();
            if left <= 0.0 {
                return Ok(());
            }
            self.testbed.pass(LOOK.min(Duration::from_secs_f64(left)))?;
            let seen = self.look()?;
            self.reads.push(seen);
        }
    }

    fn look(&self) -> Result<Reads, TestbedError> {
        let reads = |guest| -> Result<u64, TestbedError> {
            let stats = self.testbed.ask(guest, &Request::Stats)?;
            let disks = stats["disks"].as_array().map(Vec::as_slice).unwrap_or_default();
            Ok(disks.iter().filter_map(|disk| disk["reads"].as_u64()).sum())
        };
        Ok(Reads {
            idle: reads(self.idle)?,
            busy: reads(self.busy)?,
            seconds: self.testbed.seconds(),
        })
    }
}

/// What both guests are made of: the user's choice with a slow disk, and no sharing, so that only the tax
/// differs.
fn own_disk(params: &Params) -> Result<levy_launcher::GuestArgs, TestbedError> {
    let mut guest = params.guest.clone();
    if guest.disk.is_empty() {
        return Err(TestbedError::Impossible(
            "the tax shows in misses on a disk; leave --no-disk away, or give --disk".to_owned(),
        ));
    }
    for disk in guest.disk.iter_mut().filter(|disk| disk.latency.is_zero()) {
        disk.latency = LATENCY;
    }
    guest.sharing.with = SharingConfig::Off;
    Ok(guest)
}

fn setting(
    guest: &MemoryConfig,
    latency: Duration,
    work: String,
    schedule: Schedule,
) -> Result<Setting, TestbedError> {
    // The paper's 360 MiB for two guests of 256.
    let memory = Pages::new(guest.bytes / 4096 * 45 / 32);
    let closed = |percent| {
        closed_form::sizes(guest, memory, tax_of(percent)?)
            .map_err(|e| TestbedError::Impossible(e.to_string()))
    };
    Ok(Setting {
        guest_mib: guest.bytes as f64 / f64::from(1 << 20),
        memory_mib: memory.mib(),
        disk_latency_ms: latency.as_secs_f64() * 1000.0,
        work,
        sample_seconds: schedule.sample.as_secs_f64(),
        rebalance_seconds: schedule.rebalance.as_secs_f64(),
        closed_form_untaxed: closed(super::UNTAXED)?,
        closed_form_taxed: closed(super::TAXED)?,
    })
}

/// The manager's settings at the start: [`TaxedPair::fit`] sets the budget exactly once it knows what the processes need.
fn settings(params: &Params, setting: &Setting, schedule: Schedule) -> Result<Settings, TestbedError> {
    let usual = params.settings(((setting.memory_mib * 1.1 + 16.0) * f64::from(1 << 20)) as u64);
    Ok(Settings {
        tax: tax_of(super::UNTAXED)?,
        rebalance: schedule.rebalance,
        sample: Sampling {
            seconds: schedule.sample.as_secs() as u32,
            ..usual.sample
        },
        ..usual
    })
}

fn tax_of(percent: f64) -> Result<Tax, TestbedError> {
    Tax::new(percent / 100.0).map_err(|e| TestbedError::Impossible(e.to_string()))
}

/// `work`, for as long as the bench takes unless the user says how long.
fn endless(work: &str) -> String {
    if work.contains("seconds=") {
        work.to_owned()
    } else {
        format!("{work} seconds=86400")
    }
}
