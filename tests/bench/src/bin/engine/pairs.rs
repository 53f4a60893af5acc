//! Interleaved on/off pairs: how much a bystander loses to an engine on a machine that is never quiet.

use std::time::{Duration, Instant};

use levy_bench::Samples;
use serde_json::{Value, json};

/// What is watched during the pairs.
pub(crate) struct Watched<'a> {
    /// Accesses so far.
    pub(crate) accesses: &'a dyn Fn() -> u64,
    /// The longest stall since the last call.
    pub(crate) take_stall: &'a dyn Fn() -> Duration,
    /// Switches the engine on or off.
    pub(crate) switch: &'a mut dyn FnMut(Engine),
}

/// Whether the engine works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    On,
    Off,
}

/// What came out.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    ratios: Samples,
    stalls_on_us: Samples,
    stalls_off_us: Samples,
    accesses_per_second: Samples,
}

/// How many pairs, and how long each half of one is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) pairs: usize,
    pub(crate) half: Duration,
}

/// Runs the pairs. Their order alternates (on off, off on), so that a drift of the machine cancels out.
pub(crate) fn run(plan: Plan, watched: &mut Watched<'_>) -> Pairs {
    let mut result = Pairs::default();
    for pair in 0..plan.pairs {
        let order = if pair % 2 == 0 {
            [Engine::On, Engine::Off]
        } else {
            [Engine::Off, Engine::On]
        };
        let mut speeds = [0.0; 2];
        for engine in order {
            let (speed, stall) = half(plan.half, engine, watched);
            let (stalls, slot) = match engine {
                Engine::On => (&mut result.stalls_on_us, 0),
                Engine::Off => (&mut result.stalls_off_us, 1),
            };
            stalls.push(stall.as_secs_f64() * 1e6);
            speeds[slot] = speed;
        }
        result.ratios.push(speeds[0] / speeds[1]);
        result.accesses_per_second.push(speeds[1]);
    }
    (watched.switch)(Engine::Off);
    result
}

fn half(length: Duration, engine: Engine, watched: &mut Watched<'_>) -> (f64, Duration) {
    (watched.switch)(engine);
    (watched.take_stall)();
    let (start, before) = (Instant::now(), (watched.accesses)());
    std::thread::sleep(length);
    let accesses = (watched.accesses)() - before;
    (
        accesses as f64 / start.elapsed().as_secs_f64(),
        (watched.take_stall)(),
    )
}

impl Pairs {
    /// The median of the ratios.
    pub(crate) fn ratio(&self) -> f64 {
        self.ratios.median().median
    }

    /// The ratio as a number with its interval, and stalls with and without the engine.
    pub(crate) fn to_json(&self) -> Value {
        let stalls = |samples: &Samples| json!({"p50": samples.quantile(0.5), "p99": samples.quantile(0.99), "max": samples.quantile(1.0)});
        let ratio = self.ratios.median();
        json!({
            "ratio": ratio.median,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
            "pairs": self.ratios.len(),
            "accesses_per_second_off": self.accesses_per_second.median().median,
            "longest_stall_us_on": stalls(&self.stalls_on_us),
            "longest_stall_us_off": stalls(&self.stalls_off_us),
        })
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let ratio = self.ratios.median();
        format!(
            "{:.3} of its speed ({:.3} to {:.3}); longest stall of a half: p50 {:.0} us on, {:.0} us off; max {:.0} on, {:.0} off",
            ratio.median,
            ratio.low,
            ratio.high,
            self.stalls_on_us.quantile(0.5),
            self.stalls_off_us.quantile(0.5),
            self.stalls_on_us.quantile(1.0),
            self.stalls_off_us.quantile(1.0),
        )
    }
}
