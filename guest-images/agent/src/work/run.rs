//! One run: its clock, its stop flag and its reports.

use std::io::{Write, stdin, stdout};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use levy_agent::{Event, Report, Verdict, Workload};
use serde_json::{Map, Value};

use crate::clock::uptime_ms;

/// What a workload has come to. An `Err` with the reason is a failed verdict.
pub(crate) type Outcome = Result<Done, String>;

/// Work that was done and found right.
pub(crate) struct Done {
    pub(crate) ops: u64,
    pub(crate) unit: &'static str,
    pub(crate) seconds: f64,
    pub(crate) detail: String,
}

/// A run under way.
pub(crate) struct Run {
    id: Option<u64>,
    name: &'static str,
    until: Going,
    told: Told,
}

/// Says whether a run goes on; every thread of it has one.
#[derive(Clone)]
pub(crate) struct Going {
    began: Instant,
    limit: Duration,
    stop: Arc<AtomicBool>,
}

/// The progress line before.
struct Told {
    at: Instant,
    ops: u64,
}

impl Going {
    /// True until the time is up or the host says stop.
    pub(crate) fn on(&self) -> bool {
        !self.stopped() && self.began.elapsed() < self.limit
    }

    /// True once the host said stop.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Ends the run for all its threads.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Sleeps, but not past a stop or the end.
    pub(crate) fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        while self.on() && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}

impl Run {
    /// Announces the run; from here on `stop` on standard input ends it.
    pub(crate) fn begin(id: Option<u64>, workload: &Workload) -> Self {
        let now = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        stop_on_word(Arc::clone(&stop));
        let limit = Duration::from_secs(workload.seconds());
        let until = Going {
            began: now,
            limit,
            stop,
        };
        let run = Self {
            id,
            name: workload.name(),
            until,
            told: Told { at: now, ops: 0 },
        };
        run.report(Report::Started {
            run: run.name.to_owned(),
        });
        run
    }

    /// Starts the clock anew: set-up is over, measured work begins.
    pub(crate) fn begin_work(&mut self) -> Going {
        let now = Instant::now();
        self.until.began = now;
        self.told = Told { at: now, ops: 0 };
        self.until.clone()
    }

    /// True until the time is up or the host says stop.
    pub(crate) fn on(&self) -> bool {
        self.until.on()
    }

    /// Reports progress if a second has passed since the last time.
    pub(crate) fn tick(&mut self, ops: u64) {
        let since = self.told.at.elapsed();
        if since < Duration::from_secs(1) {
            return;
        }
        let rate = round(ops.saturating_sub(self.told.ops) as f64 / since.as_secs_f64());
        let seconds = round(self.until.began.elapsed().as_secs_f64());
        self.told = Told {
            at: Instant::now(),
            ops,
        };
        self.report(Report::Progress {
            run: self.name.to_owned(),
            seconds,
            ops,
            rate,
        });
    }

    /// Reports progress from a counter that other threads move, until the run is over.
    pub(crate) fn watch(&mut self, ops: impl Fn() -> u64) {
        while self.on() {
            self.until.sleep(Duration::from_millis(100));
            self.tick(ops());
        }
    }

    /// Reports figures inside the run.
    pub(crate) fn stats(&self, name: &str, values: impl IntoIterator<Item = (&'static str, Value)>) {
        let values: Map<_, _> = values
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        self.report(Report::Stats {
            name: name.to_owned(),
            values,
        });
    }

    /// Work done until now, without what is still to be checked.
    pub(crate) fn done(&self, ops: u64, unit: &'static str) -> Done {
        Done {
            ops,
            unit,
            seconds: self.until.began.elapsed().as_secs_f64(),
            detail: String::new(),
        }
    }

    /// Gives the verdict.
    pub(crate) fn end(&self, outcome: Outcome) -> ExitCode {
        let ok = outcome.is_ok();
        let done = outcome.unwrap_or_else(|detail| Done {
            ops: 0,
            unit: "",
            seconds: 0.0,
            detail,
        });
        let rate = if done.seconds > 0.0 {
            done.ops as f64 / done.seconds
        } else {
            0.0
        };
        self.report(Report::Verdict(Verdict {
            run: self.name.to_owned(),
            ok,
            ops: done.ops,
            unit: done.unit.to_owned(),
            seconds: round(done.seconds),
            rate: round(rate),
            detail: done.detail,
        }));
        if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn report(&self, report: Report) {
        let line = Event {
            t: uptime_ms(),
            id: self.id,
            report,
        }
        .to_line();
        // Where the line cannot be written, the exit status still tells.
        let mut out = stdout().lock();
        let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    }
}

/// Three digits after the point are enough for people and programs.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Not a signal: servers that a workload starts would inherit a blocked one.
fn stop_on_word(stop: Arc<AtomicBool>) {
    thread::spawn(move || {
        if stdin().lines().map_while(Result::ok).any(|line| line == "stop") {
            stop.store(true, Ordering::Relaxed);
        }
    });
}

/// Holds work to a rate.
pub(crate) struct Pacer {
    began: Instant,
    rate: u64,
}

impl Pacer {
    /// `rate` operations per second; 0 is as fast as possible.
    pub(crate) fn new(rate: u64) -> Self {
        Self {
            began: Instant::now(),
            rate,
        }
    }

    /// Sleeps until `ops` operations are due, or a twentieth of a second at most.
    pub(crate) fn pace(&self, ops: u64) {
        if self.rate == 0 {
            return;
        }
        let due = Duration::from_secs_f64(ops as f64 / self.rate as f64);
        let early = due.saturating_sub(self.began.elapsed());
        thread::sleep(early.min(Duration::from_millis(50)));
    }

    /// How many operations are due now, `most` at most.
    pub(crate) fn due(&self, ops: u64, most: u64) -> u64 {
        if self.rate == 0 {
            return most;
        }
        let due = (self.began.elapsed().as_secs_f64() * self.rate as f64) as u64;
        due.saturating_sub(ops).min(most)
    }
}
