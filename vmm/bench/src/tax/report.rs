//! The arms as a report, a table and a figure.

use std::fmt::Write;

use super::arm::Arm;
use super::pair::{BUSY, IDLE, Reads, TaxedPair};
use super::{TAXED, UNTAXED};
use crate::sample::curve;
use crate::{Figure, Line, Outcome, Panel, Report, Samples};

/// Everything the bench leaves behind.
pub(super) fn outcome(pair: &TaxedPair, arms: &[Arm]) -> Outcome {
    let gains = gains(arms);
    Outcome {
        report: report(pair, arms, &gains),
        table: table(pair, arms, &gains),
        figure: figure(pair, arms),
    }
}

/// The gain of each repeat, in percent.
fn gains(arms: &[Arm]) -> Vec<f64> {
    let of = |tax: f64| arms.iter().filter(move |arm| arm.tax_percent == tax);
    of(TAXED)
        .filter_map(|taxed| {
            let untaxed = of(UNTAXED).find(|arm| arm.repeat == taxed.repeat)?;
            Some((taxed.rate / untaxed.rate - 1.0) * 100.0)
        })
        .collect()
}

/// The mean of `of` over the arms with that tax.
fn mean(arms: &[Arm], tax: f64, of: fn(&Arm) -> f64) -> f64 {
    let values: Vec<_> = arms.iter().filter(|arm| arm.tax_percent == tax).map(of).collect();
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn report(pair: &TaxedPair, arms: &[Arm], gains: &[f64]) -> Report {
    let mut report = Report::new("tax");
    let gain = gains.iter().copied().collect::<Samples>().median();
    report.set("gain_percent", gain.median);
    report.set("gain_percent_interval", [gain.low, gain.high]);
    report.set("gain_percent_by_repeat", gains);
    report.set("setting", &pair.setting);
    for (name, tax, closed) in [
        ("untaxed", UNTAXED, pair.setting.closed_form_untaxed),
        ("taxed", TAXED, pair.setting.closed_form_taxed),
    ] {
        let mut set = |key: &str, value: f64| report.set(&format!("{name}.{key}"), value);
        set("operations_per_second", mean(arms, tax, |arm| arm.rate));
        set("misses_per_second", mean(arms, tax, |arm| arm.misses_per_second));
        set(
            "misses_per_operation",
            mean(arms, tax, |arm| arm.misses_per_operation),
        );
        set("idle_private_mib", mean(arms, tax, |arm| arm.idle.private_mib));
        set("busy_private_mib", mean(arms, tax, |arm| arm.busy.private_mib));
        set("idle_closed_form_mib", closed.0);
        set("busy_closed_form_mib", closed.1);
    }
    report.set("arms", arms);
    report.set("reads", pair.reads());
    report.set("samples", pair.samples());
    report
}

fn table(pair: &TaxedPair, arms: &[Arm], gains: &[f64]) -> String {
    let setting = &pair.setting;
    let mut text = format!(
        "two guests of {:.0} MiB, {:.0} MiB for both, disks of {} ms; {IDLE} rests, {BUSY} runs {}\n\
         repeat  tax  operations/s  misses/s  per operation  idle MiB (plan, closed form)  busy MiB (plan, closed form)  active: idle  busy\n",
        setting.guest_mib, setting.memory_mib, setting.disk_latency_ms, setting.work
    );
    for arm in arms {
        let closed = if arm.tax_percent == TAXED {
            setting.closed_form_taxed
        } else {
            setting.closed_form_untaxed
        };
        let size = |holding: &super::arm::Holding, closed: f64| {
            format!(
                "{:.0} ({:.0}, {closed:.0})",
                holding.private_mib, holding.target_mib
            )
        };
        let _ = writeln!(
            text,
            "{:>6} {:>3}% {:>13.1} {:>9.1} {:>14.3} {:>29} {:>29} {:>13.0} {:>5.0}{}",
            arm.repeat,
            arm.tax_percent,
            arm.rate,
            arm.misses_per_second,
            arm.misses_per_operation,
            size(&arm.idle, closed.0),
            size(&arm.busy, closed.1),
            arm.idle.active_mib,
            arm.busy.active_mib,
            if arm.settled { "" } else { "  not at rest" },
        );
    }
    let all: Vec<_> = gains.iter().map(|gain| format!("{gain:+.0} %")).collect();
    let median = gains.iter().copied().collect::<Samples>().median().median;
    let _ = writeln!(
        text,
        "the tax gains the busy guest {median:+.0} % (by repeat: {})",
        all.join(", ")
    );
    text
}

fn figure(pair: &TaxedPair, arms: &[Arm]) -> Figure {
    let private = |name: &str| {
        curve(pair.samples(), |sample| {
            Some(sample.guest(name)?.memory.private_bytes)
        })
    };
    let closed = |name: &str, of: fn((f64, f64)) -> f64| {
        let steps = arms.iter().flat_map(|arm| {
            let size = if arm.tax_percent == TAXED {
                of(pair.setting.closed_form_taxed)
            } else {
                of(pair.setting.closed_form_untaxed)
            };
            [(arm.set, size), (arm.to, size)]
        });
        Line::new(format!("{name}, closed form"), steps)
    };
    let tax = arms
        .iter()
        .flat_map(|arm| [(arm.set, arm.tax_percent), (arm.to, arm.tax_percent)]);
    Figure {
        title: format!(
            "Two guests of {:.0} MiB in {:.0} MiB: tax 0 and {TAXED} %",
            pair.setting.guest_mib, pair.setting.memory_mib
        ),
        x: "seconds".into(),
        panels: vec![
            Panel {
                y: "private memory, MiB".into(),
                lines: vec![
                    Line::new("idle", private(IDLE)),
                    Line::new("busy", private(BUSY)),
                    closed("idle", |pair| pair.0),
                    closed("busy", |pair| pair.1),
                    Line::new("tax, percent", tax),
                ],
            },
            Panel {
                y: "per second".into(),
                lines: vec![
                    Line::new("operations of the busy guest", pair.rates()),
                    Line::new("its reads from the disk", misses(pair.reads())),
                ],
            },
        ],
    }
}

/// The busy guest's reads per second between two looks.
fn misses(reads: &[Reads]) -> Vec<(f64, f64)> {
    reads
        .windows(2)
        .map(|two| {
            let time = (two[1].seconds - two[0].seconds).max(f64::EPSILON);
            (two[1].seconds, (two[1].busy - two[0].busy) as f64 / time)
        })
        .collect()
}
