//! What single operations cost: sampling, compression, swap, re-homing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use levy_bench::{Samples, cpu_of};
use page_share::{Gfn, PageRun, Region, State};
use ring3::{Memory, PAGE};
use serde_json::{Value, json};

use crate::levy::Levy;
use crate::map::IdentityMap;
use crate::ram::Ram;
use crate::sets::Results;
use crate::verdict::Goal;

/// Most pages in one sample.
const SAMPLE: u32 = 1024;

/// Passes that a broken page must be quiet, and one to bring it home, with one to spare.
const HOMECOMING: u32 = 5;

/// Times every operation on `pages` pages of two guests alike, whose pages compress to half.
pub(crate) fn costs(pages: usize, results: &mut Results<'_>) -> Result<()> {
    eprintln!("costs: {pages} pages each");
    let ram = Ram::build(&IdentityMap::identical(2, 2 * pages))?;
    let levy = Levy::adopt(&ram)?;
    let (region, memory) = (&levy.regions()[0], &ram.guests[0]);
    let run = PageRun::new(Gfn::new(0), pages as u32);
    sample(region, memory, results)?;
    store_and_touch("compress", memory, run, results, || Ok(region.compress(run)))?;
    store_and_touch("swap", memory, run, results, || {
        region.swap_out(run).context("the swap file refuses pages")
    })?;
    rehome(&levy, memory, results)
}

fn sample(region: &Region, memory: &Memory, results: &mut Results<'_>) -> Result<()> {
    let pages = region.page_limit().min(SAMPLE);
    let (cpu, taken) = cpu_of(|| {
        let taken = region.start_sample(pages);
        region.finish_sample();
        taken
    });
    ensure!(taken > 0, "no page could be sampled");
    results.number("costs.sample_cpu_us", per_page(cpu, taken), Goal::None);
    region.start_sample(pages);
    let all = 0..region.page_limit();
    let sampled: Vec<u32> = all
        .filter(|&page| region.state(Gfn::new(page)) == State::Sampled)
        .collect();
    let (cpu, touches) = cpu_of(|| touch(memory, &sampled));
    let touched = region.finish_sample().touched as usize;
    ensure!(
        touched == sampled.len(),
        "{touched} of {} touches were counted",
        sampled.len()
    );
    results.number(
        "costs.sample_touch_cpu_us",
        per_page(cpu, sampled.len() as u32),
        Goal::None,
    );
    results.report.set("costs.sample_touch_wall_us", wall(&touches));
    Ok(())
}

/// Times moving the pages of `run` away with `store`, and their way back when each is touched.
fn store_and_touch(
    name: &str,
    memory: &Memory,
    run: PageRun,
    results: &mut Results<'_>,
    store: impl Fn() -> Result<u32>,
) -> Result<()> {
    let (cpu, stored) = cpu_of(store);
    let stored = stored?;
    ensure!(
        stored > run.count / 2,
        "{name} took only {stored} of {} pages",
        run.count
    );
    results.number(
        &format!("costs.{name}_out_cpu_us"),
        per_page(cpu, stored),
        Goal::None,
    );
    let pages: Vec<u32> = (0..run.count).collect();
    let (cpu, touches) = cpu_of(|| touch(memory, &pages));
    results.number(
        &format!("costs.{name}_in_cpu_us"),
        per_page(cpu, stored),
        Goal::None,
    );
    results
        .report
        .set(&format!("costs.{name}_in_wall_us"), wall(&touches));
    Ok(())
}

/// Breaks every other shared page and lets passes bring them home: isolated pages, the dearest case. The cost of the
/// same number of passes without anything to do is taken off.
fn rehome(levy: &Levy, memory: &Memory, results: &mut Results<'_>) -> Result<()> {
    levy.converge(HOMECOMING);
    let (idle, ()) = cpu_of(|| (0..HOMECOMING).for_each(|_| levy.pass()));
    let region = &levy.regions()[0];
    let broken: Vec<u32> = (0..region.page_limit()).step_by(2).collect();
    for &page in &broken {
        let at = page as usize * PAGE;
        memory.write(at, !memory.read(at));
    }
    let before = region.stats().pages_rehomed;
    let (cpu, ()) = cpu_of(|| (0..HOMECOMING).for_each(|_| levy.pass()));
    let homed = (region.stats().pages_rehomed - before) as u32;
    ensure!(
        homed as usize > broken.len() / 2,
        "only {homed} of {} broken pages came home",
        broken.len()
    );
    results.number(
        "costs.rehome_isolated_cpu_us",
        per_page(cpu.saturating_sub(idle), homed),
        Goal::None,
    );
    let (cpu, homed) = cpu_of(|| levy.regions()[1].unshare_all());
    results.number("costs.rehome_run_cpu_us", per_page(cpu, homed), Goal::None);
    Ok(())
}

/// Reads one word of each page and times each read.
fn touch(memory: &Memory, pages: &[u32]) -> Samples {
    let time = |page: &u32| {
        let start = Instant::now();
        std::hint::black_box(memory.read(*page as usize * PAGE));
        start.elapsed().as_secs_f64() * 1e6
    };
    pages.iter().map(time).collect()
}

fn per_page(cpu: Duration, pages: u32) -> f64 {
    cpu.as_secs_f64() * 1e6 / f64::from(pages.max(1))
}

fn wall(touches: &Samples) -> Value {
    json!({"p50": touches.quantile(0.5), "p99": touches.quantile(0.99), "max": touches.quantile(1.0)})
}
