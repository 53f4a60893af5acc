//! The paper's figure 4: how much do 1 to 10 equal guests share, and how much of what could be shared?
//!
//! One fleet grows guest by guest. Each does the same work on data of its own; then all are quiet, and everything is
//! measured: by the engines' own account, by the kernel's, and by the [oracle](super::Findings) that reads all pages.

use std::fmt::Write;
use std::time::Duration;

use super::saving::Saving;
use super::testbed::{Testbed, TestbedError};
use super::{Figure, Line, Outcome, Panel, Params, Report};

/// Memory for everything: sharing should be all that happens.
const BUDGET: u64 = 64 << 30;

/// How the bench is run.
#[derive(Clone, Debug)]
pub struct Sharing {
    /// The fleet sizes that are measured, rising.
    pub counts: Vec<u32>,
    /// For how long, and for some passes over all memory, no engine has found anything before.
    pub quiet: Duration,
    /// CPUs that scanning may use, all guests together.
    pub scan_cpu: f64,
    /// What each guest does first, see [`Testbed::work`].
    pub work: Vec<String>,
}

impl Sharing {
    /// Runs the bench.
    ///
    /// # Errors
    /// When a guest does not do its work, or its data was wrong.
    pub fn run(&self, params: &Params) -> Result<Outcome, TestbedError> {
        let mut settings = params.settings(BUDGET);
        settings.scan.cpu = self.scan_cpu;
        let mut testbed = Testbed::open(params, settings)?;
        let mut guests = Vec::new();
        let mut rows = Vec::new();
        let mut beside = Vec::new();
        for number in 1..=self.counts.last().copied().unwrap_or(1) {
            testbed.say(&format!("guest {number} starts"));
            let guest = testbed.start_usual(&format!("equal-{number}"))?;
            testbed.ready(&[guest])?;
            beside.extend(testbed.work(guest, number, &self.work)?);
            guests.push(guest);
            if !self.counts.contains(&number) {
                continue;
            }
            testbed.say(&format!("{number} guests: quiet for {} s", self.quiet.as_secs()));
            let row = Saving::measure(&mut testbed, &guests, self.quiet)?;
            testbed.say(&row.to_string());
            rows.push(row);
            params.partial.set("by_guests", &rows);
        }
        // Their data was shared, and no workload has looked at it since.
        testbed.finish(&beside)?;
        Ok(self.outcome(&rows))
    }

    fn outcome(&self, rows: &[Saving]) -> Outcome {
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

fn figure(rows: &[Saving]) -> Figure {
    let line = |name: &str, of: &dyn Fn(&Saving) -> f64| {
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
