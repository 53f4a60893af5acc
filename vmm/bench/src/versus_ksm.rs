//! Levy's engine compared with the kernel's same-page merging, on the same guests.
//!
//! Two arms in one run, each with guests of its own that do the same work on the same data. While they work, nothing
//! is merged. Then one of the two is let loose on memory that is quiet, until nothing more comes of it. What counts is
//! how much it saves, and how much CPU it took to save nine tenths of that: ksmd's in one arm; in the other that of all
//! engines and of the whole manager, its part as the bench that takes samples included.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::cpu::process_cpu;
use super::ksm::Ksm;
use super::testbed::{RunId, Testbed, TestbedError};
use super::{Figure, Line, Outcome, Panel, Params, Report};
use levy_machine::config::SharingConfig;

/// Memory for everything: no guest should have to give any up.
const BUDGET: u64 = 64 << 30;
/// After the work: what the guests free is reported and gone after that.
const SETTLE: Duration = Duration::from_secs(10);
/// How much saving must still grow, in parts of it, ...
const GROWTH: f64 = 0.005;
/// ... within this many seconds, for an arm to go on.
const PLATEAU: f64 = 40.0;

/// How the bench is run.
#[derive(Clone, Debug)]
pub struct VersusKsm {
    /// How many guests.
    pub guests: u32,
    /// What each guest does first, see [`Testbed::work`].
    pub work: Vec<String>,
    /// CPUs that Levy's scanning may use, all guests together.
    pub scan_cpu: f64,
    /// Pages that the kernel's merging looks at between two rests of 20 ms.
    pub ksm_pages: u64,
    /// Longest time that an arm may take to find everything.
    pub longest: Duration,
}

/// One second of an arm.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct SavedPoint {
    /// Seconds since it was let loose.
    seconds: f64,
    saved_pages: u64,
    cpu_s: f64,
}

/// What an arm came to.
#[derive(Clone, Debug, Serialize)]
struct Engine {
    saved_pages: u64,
    seconds_to_90_percent: f64,
    cpu_s_to_90_percent: f64,
    cpu_us_per_saved_page: f64,
    /// It was still finding something at the end of the longest time.
    unfinished: bool,
    series: Vec<SavedPoint>,
}

impl VersusKsm {
    /// Runs the bench.
    ///
    /// # Errors
    /// When the kernel's merging is not available, a guest does not do its work, or its data was wrong.
    pub fn run(&self, params: &Params) -> Result<Outcome, TestbedError> {
        let ksm = Ksm::borrow().map_err(TestbedError::Impossible)?;
        let kernel = self.kernel(params, &ksm)?;
        params.partial.set("ksm", &kernel);
        // No page of the other arm may look like one of the kernel's.
        drop(ksm);
        let levy = self.levy(params)?;
        Ok(self.outcome(&kernel, &levy))
    }

    /// Guests whose memory the kernel merges, and not Levy.
    fn kernel(&self, params: &Params, ksm: &Ksm) -> Result<Engine, TestbedError> {
        let mut params = params.clone();
        params.guest.sharing.with = SharingConfig::Off;
        params.guest.memory.mergeable = true;
        let mut testbed = Testbed::open(&params, params.settings(BUDGET))?;
        testbed.say("same-page merging by the kernel");
        let beside = self.work(&mut testbed)?;
        let before = ksm.cpu_seconds();
        ksm.start(self.ksm_pages).map_err(TestbedError::Impossible)?;
        let arm = self.watch(&mut testbed, |_| (ksm.saved_pages(), ksm.cpu_seconds() - before))?;
        testbed.finish(&beside)?;
        Ok(arm)
    }

    /// Guests under Levy's engine.
    fn levy(&self, params: &Params) -> Result<Engine, TestbedError> {
        let mut settings = params.settings(BUDGET);
        let blocks = settings.split_blocks;
        (settings.scan.cpu, settings.split_blocks) = (0.0, 0);
        let mut testbed = Testbed::open(params, settings)?;
        testbed.say("sharing by Levy");
        let beside = self.work(&mut testbed)?;
        let before = cpu_of_all(&testbed);
        testbed.set(|settings| (settings.scan.cpu, settings.split_blocks) = (self.scan_cpu, blocks))?;
        let arm = self.watch(&mut testbed, |testbed| {
            (saved_by_levy(testbed), cpu_of_all(testbed) - before)
        })?;
        testbed.finish(&beside)?;
        Ok(arm)
    }

    /// All guests start and do their work, one after the other.
    fn work(&self, testbed: &mut Testbed) -> Result<Vec<RunId>, TestbedError> {
        let mut beside = Vec::new();
        for number in 1..=self.guests {
            let guest = testbed.start_usual(&format!("equal-{number}"))?;
            testbed.ready(&[guest])?;
            beside.extend(testbed.work(guest, number, &self.work)?);
        }
        testbed.pass(SETTLE)?;
        Ok(beside)
    }

    /// A point a second, until nothing more comes.
    fn watch(
        &self,
        testbed: &mut Testbed,
        look: impl Fn(&Testbed) -> (u64, f64),
    ) -> Result<Engine, TestbedError> {
        let began = testbed.seconds();
        let mut series = vec![SavedPoint::default()];
        loop {
            testbed.pass(Duration::from_secs(1))?;
            let (saved_pages, cpu_s) = look(testbed);
            let seconds = testbed.seconds() - began;
            series.push(SavedPoint {
                seconds,
                saved_pages,
                cpu_s,
            });
            if series.len() % 20 == 0 {
                testbed.say(&format!(
                    "{seconds:.0} s: {saved_pages} pages saved, {cpu_s:.1} s of CPU"
                ));
            }
            let late = seconds >= self.longest.as_secs_f64();
            if late || is_level(&series) {
                return Ok(Engine::of(series, late));
            }
        }
    }

    fn outcome(&self, kernel: &Engine, levy: &Engine) -> Outcome {
        let mut report = Report::new("sharing-vs-ksm");
        report.set("guests", self.guests);
        report.set("work", &self.work);
        report.set("scan_cpu", self.scan_cpu);
        report.set("ksm", json!(kernel));
        report.set("ksm.pages_to_scan", self.ksm_pages);
        report.set("levy", json!(levy));
        report.set(
            "saved_ratio",
            levy.saved_pages as f64 / kernel.saved_pages.max(1) as f64,
        );
        report.set("cpu_ratio", levy.cpu_s_to_90_percent / kernel.cpu_s_to_90_percent);
        let mut table = format!(
            "{:<6} {:>12} {:>10} {:>12} {:>13}\n",
            "", "saved pages", "s to 90 %", "CPU s to 90 %", "us per page"
        );
        for (name, arm) in [("KSM", kernel), ("Levy", levy)] {
            let _ = writeln!(
                table,
                "{name:<6} {:>12} {:>10.0} {:>12.2} {:>13.1}{}",
                arm.saved_pages,
                arm.seconds_to_90_percent,
                arm.cpu_s_to_90_percent,
                arm.cpu_us_per_saved_page,
                if arm.unfinished { "  not at its end" } else { "" }
            );
        }
        Outcome {
            report,
            table,
            figure: figure(kernel, levy),
        }
    }
}

impl Engine {
    fn of(series: Vec<SavedPoint>, unfinished: bool) -> Self {
        let saved = series.last().map_or(0, |point| point.saved_pages);
        let nine_tenths = series
            .iter()
            .find(|point| point.saved_pages as f64 >= saved as f64 * 0.9)
            .copied()
            .unwrap_or_default();
        Self {
            saved_pages: saved,
            seconds_to_90_percent: nine_tenths.seconds,
            cpu_s_to_90_percent: nine_tenths.cpu_s,
            cpu_us_per_saved_page: nine_tenths.cpu_s * 1e6 / nine_tenths.saved_pages.max(1) as f64,
            unfinished,
            series,
        }
    }
}

/// Whether saving has stopped growing.
fn is_level(series: &[SavedPoint]) -> bool {
    let Some(last) = series.last() else { return false };
    let before = series
        .iter()
        .rev()
        .find(|point| point.seconds <= last.seconds - PLATEAU);
    before.is_some_and(|before| {
        before.saved_pages > 0 && last.saved_pages as f64 <= before.saved_pages as f64 * (1.0 + GROWTH)
    })
}

fn saved_by_levy(testbed: &Testbed) -> u64 {
    let Some(sample) = testbed.samples().last() else {
        return 0;
    };
    let found: u64 = sample
        .guests
        .iter()
        .map(|guest| guest.memory.shared_bytes + guest.memory.zero_bytes)
        .sum();
    found.saturating_sub(sample.pools_bytes) / 4096
}

/// Seconds of CPU: the engines' own count, and this process, which is the manager.
fn cpu_of_all(testbed: &Testbed) -> f64 {
    let engines: u64 = testbed.samples().last().map_or(0, |sample| {
        sample.guests.iter().map(|guest| guest.engine_cpu_us).sum()
    });
    engines as f64 / 1e6 + process_cpu().as_secs_f64()
}

fn figure(kernel: &Engine, levy: &Engine) -> Figure {
    let line = |name: &str, arm: &Engine, of: &dyn Fn(&SavedPoint) -> (f64, f64)| {
        Line::new(name, arm.series.iter().map(of))
    };
    let over_time = |point: &SavedPoint| (point.seconds, point.saved_pages as f64 / 256.0);
    let cpu = |point: &SavedPoint| (point.seconds, point.cpu_s);
    let both = |of: &dyn Fn(&SavedPoint) -> (f64, f64)| vec![line("Levy", levy, of), line("KSM", kernel, of)];
    Figure {
        title: "Levy and KSM on the same guests".into(),
        x: "seconds".into(),
        panels: vec![
            Panel {
                y: "MiB saved".into(),
                lines: both(&over_time),
            },
            Panel {
                y: "seconds of CPU spent".into(),
                lines: both(&cpu),
            },
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(saved: impl Fn(u64) -> u64, count: u64) -> Vec<SavedPoint> {
        let point = |second| SavedPoint {
            seconds: second as f64,
            saved_pages: saved(second),
            cpu_s: second as f64 / 10.0,
        };
        (0..count).map(point).collect()
    }

    #[test]
    fn an_arm_ends_when_its_saving_stops_growing() {
        assert!(!is_level(&points(|_| 0, 100)), "nothing was saved yet");
        assert!(!is_level(&points(|second| second * 10, 100)));
        assert!(is_level(&points(|second| second.min(50) * 10, 100)));
        assert!(!is_level(&points(|second| second.min(50) * 10, 80)));
    }

    #[test]
    fn nine_tenths_of_the_saving_are_found_in_the_series() {
        let arm = Engine::of(points(|second| second.min(50) * 10, 100), false);
        assert_eq!((arm.saved_pages, arm.seconds_to_90_percent), (500, 45.0));
        assert!((arm.cpu_us_per_saved_page - 10_000.0).abs() < 1.0);
    }
}
