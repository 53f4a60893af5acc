//! Does a guest's word on what it reads from a common disk have equal pages merged sooner?
//!
//! Two pairs of guests boot from one image, each pair in a sharing domain of its own: one says what it reads
//! (`--sharing hints=on`), the other does not. When all is quiet, both guests of a pair read the same part of the image,
//! one after the other, and the pair is watched. The pairs take turns, in alternating order, with another part of the
//! image each time.

use std::fmt::Write;
use std::time::Duration;

use levy_agent::Action;
use serde::Serialize;

use super::{Figure, Guest, Line, Outcome, Panel, Params, Report, Sample, Samples, Testbed, TestbedError};
use levy_machine::config::{Hints, SharingConfig};

/// Memory for everything: sharing should be all that happens.
const BUDGET: u64 = 64 << 30;
/// What one guest reads.
const READ_MIB: u64 = 64;
/// The parts begin here: what a guest reads at boot lies before, for the most part.
const FROM_MIB: u64 = 256;
/// How long a reading may take.
const READ_SECONDS: u64 = 120;
/// The pairs are at rest when the shared memory of both grew by less than this in the time given.
const REST: (u64, Duration) = (1 << 20, Duration::from_secs(20));
/// Patience until they are.
const SETTLE: Duration = Duration::from_secs(300);
/// Seconds after the readings at which `shared_mib` is told.
const MARKS: [f64; 5] = [0.0, 5.0, 10.0, 20.0, 40.0];

/// How the bench is run.
#[derive(Clone, Debug)]
pub struct HintedReads {
    /// Turns of each pair.
    pub repeats: u32,
    /// CPUs that scanning may use, all guests together.
    pub scan_cpu: f64,
    /// How long a pair is watched after its second guest has read.
    pub watch: Duration,
}

/// Two guests that differ from the other two in one option.
struct ReadingPair {
    hints: Hints,
    guests: [Guest; 2],
}

/// One turn of one pair. Sizes are of both guests together, beyond what they had before.
#[derive(Clone, Debug, Serialize)]
struct Turn {
    repeat: u32,
    hints: bool,
    /// Seconds that the two readings took.
    reading_s: f64,
    /// Memory mapped from the pool, MiB, 0, 5, 10, 20 and 40 s after the second reading (as far as it was watched).
    shared_mib: Vec<f64>,
    /// Seconds from the end of the second reading until half, and nine tenths, of the turn's last figure were shared.
    seconds_to_half: f64,
    seconds_to_nine_tenths: f64,
    /// CPU of both engines, from the first reading until nine tenths were shared, and until the end.
    cpu_s_to_nine_tenths: f64,
    cpu_s: f64,
    /// The last figure.
    final_mib: f64,
    /// Seconds after the second reading, and MiB shared.
    series: Vec<(f64, f64)>,
}

impl HintedReads {
    /// Runs the bench.
    ///
    /// # Errors
    /// When guests cannot be started, have no disk, or cannot read it.
    pub fn run(&self, params: &Params) -> Result<Outcome, TestbedError> {
        if params.guest.disk.is_empty() {
            return Err(TestbedError::Impossible(
                "hints are about reads of a disk; leave --no-disk away, or give --disk".to_owned(),
            ));
        }
        let mut settings = params.settings(BUDGET);
        settings.scan.cpu = self.scan_cpu;
        let mut testbed = Testbed::open(params, settings)?;
        let pairs = [
            pair(&mut testbed, params, Hints::Off)?,
            pair(&mut testbed, params, Hints::On)?,
        ];
        let mut turns = Vec::new();
        for repeat in 1..=self.repeats {
            let mut order = [&pairs[0], &pairs[1]];
            order.rotate_left((repeat as usize + 1) % 2);
            for pair in order {
                settle(&mut testbed)?;
                let turn = self.turn(&mut testbed, pair, repeat)?;
                testbed.say(&turn.to_string());
                turns.push(turn);
                params.partial.set("turns", &turns);
            }
        }
        Ok(self.outcome(&turns, testbed.samples()))
    }

    fn turn(&self, testbed: &mut Testbed, pair: &ReadingPair, repeat: u32) -> Result<Turn, TestbedError> {
        let names = pair.guests.map(|guest| testbed.name(guest).to_owned());
        let (began, before) = (testbed.seconds(), testbed.samples().len());
        for guest in pair.guests {
            read(testbed, guest, FROM_MIB + u64::from(repeat - 1) * READ_MIB)?;
        }
        let read = testbed.seconds();
        testbed.pass(self.watch)?;
        let samples = &testbed.samples()[before.saturating_sub(1)..];
        let sum = |sample: &Sample, of: fn(&super::GuestSample) -> u64| -> u64 {
            names.iter().filter_map(|name| sample.guest(name)).map(of).sum()
        };
        let start = samples.first().map_or((0, 0), |sample| {
            (
                sum(sample, |guest| guest.memory.shared_bytes),
                sum(sample, |guest| guest.engine_cpu_us),
            )
        });
        let points: Vec<SharedPoint> = samples
            .iter()
            .map(|sample| SharedPoint {
                seconds: sample.seconds - read,
                mib: (sum(sample, |guest| guest.memory.shared_bytes) as f64 - start.0 as f64)
                    / f64::from(1 << 20),
                cpu_s: (sum(sample, |guest| guest.engine_cpu_us) - start.1) as f64 / 1e6,
            })
            .collect();
        Ok(Turn::of(repeat, pair.hints, read - began, &points))
    }

    fn outcome(&self, turns: &[Turn], samples: &[Sample]) -> Outcome {
        let mut report = Report::new("hints");
        report.set("read_mib", READ_MIB);
        report.set("scan_cpu", self.scan_cpu);
        report.set("turns", turns);
        let mut table = format!(
            "{:>6} {:>5} {:>8} {:>40} {:>8} {:>7} {:>7} {:>8} {:>7}\n",
            "repeat",
            "hints",
            "reading",
            "MiB shared after 0, 5, 10, 20, 40 s",
            "in all",
            "s to ½",
            "s to .9",
            "CPU to .9",
            "CPU s"
        );
        turns.iter().for_each(|turn| {
            let _ = writeln!(table, "{turn}");
        });
        for (name, hints) in [("on", true), ("off", false)] {
            let median = |of: fn(&Turn) -> f64| {
                let arm = turns.iter().filter(|turn| turn.hints == hints);
                arm.map(of).collect::<Samples>().median()
            };
            let (half, nine_tenths) = (
                median(|turn| turn.seconds_to_half),
                median(|turn| turn.seconds_to_nine_tenths),
            );
            report.set(&format!("{name}.seconds_to_half"), half);
            report.set(&format!("{name}.seconds_to_nine_tenths"), nine_tenths);
            report.set(&format!("{name}.cpu_s"), median(|turn| turn.cpu_s));
            let _ = writeln!(
                table,
                "hints {name}: half after {:.1} s, nine tenths after {:.1} s (medians)",
                half.median, nine_tenths.median
            );
        }
        report.set("samples", samples);
        Outcome {
            report,
            table,
            figure: figure(turns),
        }
    }
}

/// One second of a turn.
#[derive(Clone, Copy, Debug)]
struct SharedPoint {
    seconds: f64,
    mib: f64,
    cpu_s: f64,
}

impl Turn {
    fn of(repeat: u32, hints: Hints, reading_s: f64, points: &[SharedPoint]) -> Self {
        let last = points.last().copied();
        let final_mib = last.map_or(0.0, |point| point.mib);
        let reached = |part: f64| {
            let point = points.iter().find(|point| point.mib >= final_mib * part);
            point.map_or((f64::NAN, f64::NAN), |point| (point.seconds, point.cpu_s))
        };
        let at = |mark: f64| {
            points
                .iter()
                .find(|point| point.seconds >= mark)
                .map(|point| point.mib)
        };
        Self {
            repeat,
            hints: hints == Hints::On,
            reading_s,
            shared_mib: MARKS.iter().map_while(|&mark| at(mark)).collect(),
            seconds_to_half: reached(0.5).0,
            seconds_to_nine_tenths: reached(0.9).0,
            cpu_s_to_nine_tenths: reached(0.9).1,
            cpu_s: last.map_or(0.0, |point| point.cpu_s),
            final_mib,
            series: points.iter().map(|point| (point.seconds, point.mib)).collect(),
        }
    }
}

impl std::fmt::Display for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let marks: Vec<_> = self.shared_mib.iter().map(|mib| format!("{mib:.1}")).collect();
        write!(
            f,
            "{:>6} {:>5} {:>8.1} {:>40} {:>8.1} {:>7.1} {:>7.1} {:>9.2} {:>7.2}",
            self.repeat,
            if self.hints { "on" } else { "off" },
            self.reading_s,
            marks.join(" "),
            self.final_mib,
            self.seconds_to_half,
            self.seconds_to_nine_tenths,
            self.cpu_s_to_nine_tenths,
            self.cpu_s,
        )
    }
}

/// Starts two guests that share with each other only.
fn pair(testbed: &mut Testbed, params: &Params, hints: Hints) -> Result<ReadingPair, TestbedError> {
    let name = match hints {
        Hints::On => "hinting",
        Hints::Off => "silent",
    };
    let mut args = params.guest.clone();
    args.sharing.with = SharingConfig::Domain(name.to_owned());
    args.sharing.hints = hints;
    let mut start = |number| {
        let guest = testbed.start(&format!("{name}-{number}"), &args)?;
        testbed.ready(&[guest])?;
        Ok::<_, TestbedError>(guest)
    };
    Ok(ReadingPair {
        hints,
        guests: [start(1)?, start(2)?],
    })
}

/// Has `guest` read a part of its disk through its page cache, with no file system's help.
fn read(testbed: &mut Testbed, guest: Guest, from_mib: u64) -> Result<(), TestbedError> {
    let count = READ_MIB * 8;
    let skip = from_mib * 8;
    let argv = ["dd", "if=/dev/vda", "of=/dev/null", "bs=128k"]
        .map(str::to_owned)
        .into_iter()
        .chain([format!("count={count}"), format!("skip={skip}")])
        .collect();
    let answer = testbed.tell(
        guest,
        Action::Exec {
            argv,
            seconds: READ_SECONDS,
        },
    )?;
    let said = serde_json::Value::Object(answer).to_string();
    match said.contains(&format!("{count}+0 records in")) {
        true => Ok(()),
        false => Err(TestbedError::Impossible(format!(
            "guest {} did not read {READ_MIB} MiB from MiB {from_mib} of its disk: {said}",
            testbed.name(guest)
        ))),
    }
}

/// Waits until no guest's shared memory grows any more.
fn settle(testbed: &mut Testbed) -> Result<(), TestbedError> {
    let since = testbed.seconds();
    testbed.until(SETTLE, "sharing comes to rest", |testbed| {
        let shared = |sample: &Sample| {
            sample
                .guests
                .iter()
                .map(|guest| guest.memory.shared_bytes)
                .sum::<u64>()
        };
        let last = testbed.samples().last()?;
        let before = testbed
            .samples()
            .iter()
            .rfind(|sample| sample.seconds <= last.seconds - REST.1.as_secs_f64())?;
        (before.seconds >= since && shared(last).abs_diff(shared(before)) < REST.0).then_some(())
    })
}

fn figure(turns: &[Turn]) -> Figure {
    let line = |turn: &Turn| {
        let name = if turn.hints { "hints" } else { "no hints" };
        let line = Line::new(format!("{name}, {}", turn.repeat), turn.series.iter().copied());
        if turn.hints { line } else { line.pale() }
    };
    Figure {
        title: "Two guests that have read the same".into(),
        x: "seconds after the second reading".into(),
        panels: vec![Panel {
            y: "MiB shared".into(),
            lines: turns.iter().map(line).collect(),
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_tells_when_its_parts_were_shared() {
        let points: Vec<_> = (-3..=30)
            .map(|second| SharedPoint {
                seconds: f64::from(second),
                mib: f64::from(second.clamp(0, 20)) * 5.0,
                cpu_s: f64::from(second + 3) / 10.0,
            })
            .collect();
        let turn = Turn::of(1, Hints::On, 3.0, &points);
        assert_eq!(turn.shared_mib, [0.0, 25.0, 50.0, 100.0]);
        assert_eq!((turn.seconds_to_half, turn.seconds_to_nine_tenths), (10.0, 18.0));
        assert!((turn.cpu_s_to_nine_tenths - 2.1).abs() < 1e-9 && (turn.cpu_s - 3.3).abs() < 1e-9);
    }
}
