//! What merging costs and gains: the engine of `page-share` against the kernel's KSM, on the same bytes in one run.
//!
//! Parts: `identical` and `debian` merge a data set with both engines; `limit` merges under the default limit on
//! mappings; `churn` and `ring3` watch bystanders while the engine works; `costs` times single operations.
//! `docs/benchmarks-engine.md` explains every key of the report.

mod bystander;
mod bystanders;
mod costs;
mod ksm;
mod levy;
mod map;
mod page;
mod pairs;
mod ram;
mod scale;
mod sets;
mod supervise;
mod verdict;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use levy_bench::Report;

use ksm::Ksm;
use map::IdentityMap;
use scale::Scale;
use sets::{IdlePass, Results};
use verdict::Verdicts;

#[derive(Parser)]
#[command(
    name = "engine",
    about = "The merging engine against KSM: CPU, completeness, memory, bystanders. Needs root."
)]
struct Args {
    /// Write the report here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A page identity map to use instead of the Debian guests that the bench carries
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// A smoke test of about a minute; its numbers mean little
    #[arg(long)]
    quick: bool,
    /// Leave KSM out, and with it every comparison: for work on the engine itself
    #[arg(long)]
    without_rival: bool,
    /// Only these parts
    #[arg(long, value_name = "PARTS", value_delimiter = ',')]
    only: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Identical,
    Debian,
    Limit,
    Churn,
    Ring3,
    Costs,
}

fn main() -> Result<()> {
    let args = Args::parse();
    // The map is read first, so that a bad one is refused before anything is changed.
    let map = IdentityMap::load(args.map.as_deref())?;
    if !supervise::is_child() {
        if !args.without_rival {
            Ksm::find(false)?;
        }
        return supervise::run_child();
    }
    supervise::follow_parent()?;
    measure(&args, &map)
}

fn measure(args: &Args, map: &IdentityMap) -> Result<()> {
    let scale = if args.quick { Scale::QUICK } else { Scale::FULL };
    let (map, wanted) = (scale.cut(map), |part| {
        args.only.is_empty() || args.only.contains(&part)
    });
    let ksm = if args.without_rival {
        None
    } else {
        Some(Ksm::find(scale.ripen)?)
    };
    let (mut report, mut verdicts) = (Report::new("engine"), Verdicts::default());
    let mut results = Results {
        report: &mut report,
        verdicts: &mut verdicts,
    };
    results.report.set("quick", args.quick);
    sets::raise_map_limit()?;
    if wanted(Part::Identical) {
        sets::compare(
            "identical",
            &scale.identical(),
            ksm.as_ref(),
            IdlePass::Skipped,
            &mut results,
        )?;
    }
    if wanted(Part::Debian) {
        sets::compare("debian", &map, ksm.as_ref(), IdlePass::Measured, &mut results)?;
    }
    if wanted(Part::Limit) {
        sets::default_map_limit(&map, scale.copies, &mut results)?;
    }
    if wanted(Part::Churn) {
        bystanders::churn(&map, scale, &mut results)?;
    }
    if wanted(Part::Ring3) {
        bystanders::ring3(&map, scale, &mut results)?;
    }
    if wanted(Part::Costs) {
        costs::costs(scale.repeats, &mut results)?;
    }
    verdicts.print();
    Ok(report.write(args.json.as_deref())?)
}
