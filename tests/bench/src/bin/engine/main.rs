//! What merging costs and gains: the engine of `page-share` against the kernel's KSM, on the same bytes in one run.
mod bystander;
mod ksm;
mod map;
mod page;
mod pairs;
mod ram;
mod supervise;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
#[command(name = "engine")]
struct Args {
    #[arg(long)]
    json: Option<PathBuf>,
    #[arg(long)]
    map: Option<PathBuf>,
    #[arg(long)]
    quick: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if !supervise::is_child() {
        return supervise::run_child();
    }
    supervise::follow_parent()?;
    let ksm = ksm::Ksm::find(!args.quick)?;
    let map = map::IdentityMap::load(args.map.as_deref())?;
    for (name, map) in [
        ("debian", map.clone()),
        ("identical", map::IdentityMap::identical(4, 131072)),
    ] {
        let ram = ram::Ram::build(&map)?;
        eprintln!("{name} {:?}", ram.oracle());
        let t = std::time::Instant::now();
        eprintln!("{:?} {:?}", ksm.run(&ram)?, t.elapsed());
    }
    Ok(())
}
