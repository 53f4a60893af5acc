//! The paper's figure 4: how much do 1 to 10 equal guests share, and how much of what could be shared?
//!
//! One fleet grows guest by guest. Each does the same work on data of its own; then all are quiet, and everything is
//! measured: by the engines' own account, by the kernel's, and by the [oracle](super::Findings) that reads all pages.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::oracle::Findings;
use super::stage::{Guest, Stage, StageError};
use super::{Figure, Line, Outcome, Panel, Report, Scene};
use crate::control::Request;

/// Memory for everything: sharing shall be all that happens.
const BUDGET: u64 = 64 << 30;
/// For orders to reach the guests, and for their reports to come back.
const ROUND_TRIP: Duration = Duration::from_millis(2500);

/// How the bench is run.
#[derive(Clone, Debug)]
pub struct Sharing {
    /// The fleet sizes that are measured, rising.
    pub counts: Vec<u32>,
    /// How long everybody is quiet before.
    pub quiet: Duration,
    /// CPUs that scanning may use, all guests together.
    pub scan_cpu: f64,
    /// What each guest does first, see [`Stage::work`].
    pub work: Vec<String>,
}

/// One fleet size. Pages of 4 KiB.
#[derive(Clone, Debug, Serialize)]
struct Row {
    guests: u32,
    /// What the guests hold, shared pages and zeros included.
    held_pages: u64,
    /// Of that, mapped from the pool.
    shared_pages: u64,
    /// Of that, the zero page.
    zero_pages: u64,
    /// Common copies, each once.
    pool_pages: u64,
    /// Saved: zero + shared - pool.
    reclaimed_pages: u64,
    reclaimed_percent: f64,
    shared_percent: f64,
    /// Saved by the kernel's account: held pages less the sum of the guests' proportional sizes.
    kernel_reclaimed_pages: u64,
    /// Of what the oracle found.
    of_oracle: f64,
    /// What the oracle's ideal would be.
    ceiling_percent: f64,
    oracle: Findings,
    /// Full passes of the guest that was scanned least since it came.
    least_passes: u64,
    /// CPU used by all engines since the guests started.
    engine_cpu_s: f64,
    /// Private memory of the VMM with most of it, outside its guest's memory.
    vmm_private_kib: u64,
}

impl Sharing {
    /// Runs the bench.
    ///
    /// # Errors
    /// When a guest does not do its work, or its data was wrong.
    pub fn run(&self, scene: &Scene) -> Result<Outcome, StageError> {
        let mut settings = scene.settings(BUDGET);
        settings.scan.cpu = self.scan_cpu;
        let mut stage = Stage::open(scene, settings)?;
        let mut guests = Vec::new();
        let mut rows = Vec::new();
        let mut beside = Vec::new();
        for number in 1..=self.counts.last().copied().unwrap_or(1) {
            stage.say(&format!("guest {number} starts"));
            let guest = stage.start_usual(&format!("equal-{number}"))?;
            stage.ready(&[guest])?;
            beside.extend(stage.work(guest, number, &self.work)?);
            guests.push(guest);
            if !self.counts.contains(&number) {
                continue;
            }
            stage.say(&format!("{number} guests: quiet for {} s", self.quiet.as_secs()));
            stage.pass(self.quiet)?;
            let row = self.measure(&mut stage, &guests)?;
            stage.say(&row.to_string());
            rows.push(row);
            scene.draft.set("by_guests", &rows);
        }
        // Their data was shared, and nobody has looked at it since.
        stage.finish(&beside)?;
        Ok(self.outcome(&rows))
    }

    /// Everything about one moment: scanning stops first, then all guests.
    fn measure(&self, stage: &mut Stage, guests: &[Guest]) -> Result<Row, StageError> {
        stage.set(|settings| settings.scan.cpu = 0.0)?;
        stage.pass(ROUND_TRIP)?;
        guests.iter().try_for_each(|guest| stage.pause(*guest))?;
        let row = Row::of(stage, guests)?;
        guests.iter().try_for_each(|guest| stage.resume(*guest))?;
        stage.set(|settings| settings.scan.cpu = self.scan_cpu)?;
        Ok(row)
    }

    fn outcome(&self, rows: &[Row]) -> Outcome {
        let mut report = Report::new("sharing");
        report.set("work", &self.work);
        report.set("quiet_seconds", self.quiet.as_secs());
        report.set("scan_cpu", self.scan_cpu);
        report.set("by_guests", rows);
        if let Some(last) = rows.last() {
            report.set("reclaimed_of_oracle", last.of_oracle);
            report.set("reclaimed_percent", last.reclaimed_percent);
            report.set("vmm_private_kib", last.vmm_private_kib);
        }
        let least = rows.iter().map(|row| row.of_oracle).fold(f64::NAN, f64::min);
        report.set("least_of_oracle", least);
        let mut table = format!(
            "{:>6} {:>9} {:>9} {:>9} {:>9} {:>10} {:>9} {:>9} {:>8}\n",
            "guests", "held MiB", "shared", "zero", "pool", "reclaimed", "% of held", "of oracle", "CPU s"
        );
        for row in rows {
            let mib = |pages: u64| pages as f64 / 256.0;
            let _ = writeln!(
                table,
                "{:>6} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>10.1} {:>9.1} {:>8.1}% {:>8.1}",
                row.guests,
                mib(row.held_pages),
                mib(row.shared_pages),
                mib(row.zero_pages),
                mib(row.pool_pages),
                mib(row.reclaimed_pages),
                row.reclaimed_percent,
                row.of_oracle * 100.0,
                row.engine_cpu_s,
            );
        }
        Outcome {
            report,
            table,
            figure: figure(rows),
        }
    }
}

impl Row {
    fn of(stage: &Stage, guests: &[Guest]) -> Result<Self, StageError> {
        let stats: Vec<_> = guests
            .iter()
            .map(|guest| stage.ask(*guest, &Request::Stats))
            .collect::<Result<_, _>>()?;
        let all = |part: &str, name: &str| -> Vec<u64> {
            let number = |stats: &serde_json::Value| stats[part][name].as_u64().unwrap_or_default();
            stats.iter().map(number).collect()
        };
        let sum = |part, name| all(part, name).iter().sum::<u64>();
        let pool_pages: u64 = {
            let domains = stage.host().roster().domains().clone();
            let sizes = domains
                .values()
                .filter_map(|domain| domain.with(|domain| domain.sizes().pool_pages));
            sizes.map(u64::from).sum()
        };
        let oracle = Findings::of(stage, guests)?;
        let saved = (oracle.found_zero + oracle.found_shared).saturating_sub(pool_pages);
        let percent = |pages: u64| pages as f64 * 100.0 / oracle.held.max(1) as f64;
        Ok(Self {
            guests: guests.len() as u32,
            held_pages: oracle.held,
            shared_pages: oracle.found_shared,
            zero_pages: oracle.found_zero,
            pool_pages,
            reclaimed_pages: saved,
            reclaimed_percent: percent(saved),
            shared_percent: percent(oracle.found_shared),
            kernel_reclaimed_pages: oracle.held.saturating_sub(sum("memory", "guest_pss_kib") / 4),
            of_oracle: saved as f64 / oracle.reclaimable.max(1) as f64,
            ceiling_percent: percent(oracle.reclaimable),
            least_passes: all("pages", "passes").into_iter().min().unwrap_or_default(),
            engine_cpu_s: (sum("pages", "scan_cpu_us") + sum("pages", "handler_cpu_us")) as f64 / 1e6,
            vmm_private_kib: all("memory", "vmm_private_kib")
                .into_iter()
                .max()
                .unwrap_or_default(),
            oracle,
        })
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} guests: {} pages held, {} reclaimed ({:.1} %; by the kernel {}), {:.1} % of the oracle's {}; missed {:?}; \
             {} passes at least",
            self.guests,
            self.held_pages,
            self.reclaimed_pages,
            self.reclaimed_percent,
            self.kernel_reclaimed_pages,
            self.of_oracle * 100.0,
            self.oracle.reclaimable,
            self.oracle.missed,
            self.least_passes
        )
    }
}

fn figure(rows: &[Row]) -> Figure {
    let line = |name: &str, of: &dyn Fn(&Row) -> f64| {
        Line::new(name, rows.iter().map(|row| (f64::from(row.guests), of(row))))
    };
    let mib = |pages: u64| pages as f64 / 256.0;
    Figure {
        title: "Equal guests, the same work on different data".into(),
        x: "guests".into(),
        panels: vec![
            Panel {
                y: "MiB".into(),
                lines: vec![
                    line("held by the guests", &|row| mib(row.held_pages)),
                    line("shared (mapped from the pool)", &|row| mib(row.shared_pages)),
                    line("reclaimable (oracle)", &|row| mib(row.oracle.reclaimable)).pale(),
                    line("reclaimed", &|row| mib(row.reclaimed_pages)),
                    line("zero pages", &|row| mib(row.zero_pages)),
                ],
            },
            Panel {
                y: "% of held memory".into(),
                lines: vec![
                    line("shared", &|row| row.shared_percent),
                    line("reclaimable (oracle)", &|row| row.ceiling_percent).pale(),
                    line("reclaimed", &|row| row.reclaimed_percent),
                ],
            },
        ],
    }
}
