//! The two engines on one data set, and the default limit on mappings.

use anyhow::Result;
use levy_bench::Report;
use serde_json::{Value, json};

use crate::ksm::Ksm;
use crate::levy::{Converged, Levy};
use crate::map::IdentityMap;
use crate::ram::Ram;
use crate::supervise::{MAX_MAP_COUNT, set};
use crate::verdict::{Goal, Verdicts};

/// What a process may map where the limit was not raised.
const DEFAULT_MAP_LIMIT: &str = "65530";
/// More than any data set here needs.
const RAISED_MAP_LIMIT: &str = "4000000";

/// Passes within which the engine must have merged what it is going to.
const PASSES: u32 = 3;
/// Passes over unchanged memory that are averaged.
const IDLE_PASSES: u32 = 5;

/// Where results go.
pub(crate) struct Results<'a> {
    pub(crate) report: &'a mut Report,
    pub(crate) verdicts: &'a mut Verdicts,
}

impl Results<'_> {
    /// Stores a number that has, or may have, a goal.
    pub(crate) fn number(&mut self, key: &str, value: f64, goal: Goal) {
        self.report.set(key, value);
        self.verdicts.add(key, value, goal);
    }
}

/// Lets processes have as many mappings as the data sets need.
pub(crate) fn raise_map_limit() -> Result<()> {
    set(MAX_MAP_COUNT, RAISED_MAP_LIMIT)
}

/// Runs both engines on `map`, each on memory freshly made from it; stores `name.*`, and with [`IdlePass::Measured`] the
/// cost of passes over unchanged memory.
pub(crate) fn compare(
    name: &str,
    map: &IdentityMap,
    ksm: Option<&Ksm>,
    idle_pass: IdlePass,
    results: &mut Results<'_>,
) -> Result<()> {
    eprintln!(
        "{name}: {} guests of {} MiB",
        map.guests(),
        (map.pages_per_guest() * ring3::PAGE) >> 20
    );
    let ours = levy(name, map, idle_pass, results)?;
    let Some(ksm) = ksm else { return Ok(()) };
    eprintln!("{name}: KSM");
    let ram = Ram::build(map)?;
    let reclaimable = ram.oracle().reclaimable as f64;
    let theirs = ksm.run(&ram)?;
    let mut store = |key: &str, value: f64, goal: Goal| results.number(&format!("{name}.{key}"), value, goal);
    store("ksm_cpu_us_per_page", theirs.cpu_us_per_page, Goal::None);
    store(
        "ratio",
        ours.cpu_us_per_page / theirs.cpu_us_per_page,
        Goal::AtMost(0.25),
    );
    store(
        "ksm_merged_of_oracle",
        theirs.merged as f64 / reclaimable,
        Goal::None,
    );
    if let Some(idle) = ours.idle_ms_per_gib {
        results.number("idle_pass.ksm_ms_per_gib", theirs.idle_ms_per_gib, Goal::None);
        results.number(
            "idle_pass.ratio",
            idle / theirs.idle_ms_per_gib,
            Goal::AtMost(0.05),
        );
        if let Some(ripe) = theirs.idle_ripe_ms_per_gib {
            results.number("idle_pass.ksm_ripe_ms_per_gib", ripe, Goal::None);
        }
    }
    results.report.set(&format!("{name}.ksm"), theirs);
    Ok(())
}

/// What is compared with the rival.
struct Ours {
    cpu_us_per_page: f64,
    idle_ms_per_gib: Option<f64>,
}

/// Levy's half of [`compare`].
fn levy(name: &str, map: &IdentityMap, idle_pass: IdlePass, results: &mut Results<'_>) -> Result<Ours> {
    let ram = Ram::build(map)?;
    let oracle = ram.oracle();
    eprintln!("{name}: {oracle:?}; Levy");
    let levy = Levy::adopt(&ram)?;
    let ours = levy.converge(PASSES);
    let cpu_us_per_page = ours.cpu_us_per_page();
    let mut store = |key: &str, value: f64, goal: Goal| results.number(&format!("{name}.{key}"), value, goal);
    store("levy_cpu_us_per_page", cpu_us_per_page, Goal::None);
    store(
        "merged_of_oracle",
        ours.freed as f64 / oracle.reclaimable as f64,
        Goal::AtLeast(0.98),
    );
    let metadata = ours.metadata_bytes as f64 / ram.bytes() as f64 * 100.0;
    store("metadata_percent", metadata, Goal::AtMost(1.5));
    results.report.set(&format!("{name}.oracle"), oracle);
    results.report.set(&format!("{name}.levy"), details(&ours));
    let idle_ms_per_gib = (idle_pass == IdlePass::Measured).then(|| levy.idle_ms_per_gib(IDLE_PASSES));
    if let Some(idle) = idle_ms_per_gib {
        results.number("idle_pass.levy_ms_per_gib", idle, Goal::None);
    }
    Ok(Ours {
        cpu_us_per_page,
        idle_ms_per_gib,
    })
}

/// Whether passes over unchanged memory are measured with a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdlePass {
    Measured,
    Skipped,
}

/// Lays `map` out `copies` times and merges it under the default limit on mappings.
pub(crate) fn default_map_limit(map: &IdentityMap, copies: usize, results: &mut Results<'_>) -> Result<()> {
    let map = map.copies(copies);
    eprintln!(
        "default_map_limit: {} guests of {} MiB",
        map.guests(),
        (map.pages_per_guest() * ring3::PAGE) >> 20
    );
    let ram = Ram::build(&map)?;
    let oracle = ram.oracle();
    set(MAX_MAP_COUNT, DEFAULT_MAP_LIMIT)?;
    let levy = Levy::adopt(&ram)?;
    // Short runs wait until the long ones have had their turn, so it takes longer to get everything.
    let ours = levy.converge(4 * PASSES);
    let mappings = mappings_of_process();
    drop(levy);
    raise_map_limit()?;
    let part = ours.freed as f64 / oracle.reclaimable as f64;
    results.number("default_map_limit.merged_of_oracle", part, Goal::AtLeast(0.85));
    results.report.set("default_map_limit.passes", ours.passes);
    results.report.set("default_map_limit.mappings", mappings);
    results.report.set("default_map_limit.oracle", oracle);
    Ok(())
}

fn details(ours: &Converged) -> Value {
    json!({
        "freed": ours.freed,
        "passes": ours.passes,
        "cpu_ms": ours.cpu.as_secs_f64() * 1e3,
        "metadata_bytes": ours.metadata_bytes,
        "mappings": mappings_of_process(),
    })
}

fn mappings_of_process() -> usize {
    std::fs::read_to_string("/proc/self/maps").map_or(0, |maps| maps.lines().count())
}
