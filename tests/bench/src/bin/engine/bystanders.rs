//! What bystanders lose: a thread of this process and a ring-3 guest that use memory while it is being scanned.

use std::sync::Arc;

use anyhow::{Context, Result};
use ring3::{Guest, Work};

use crate::bystander::{Bystander, Churn, Pages, Writes};
use crate::levy::Levy;
use crate::map::IdentityMap;
use crate::pairs::{Pairs, Watched, run};
use crate::ram::Ram;
use crate::scale::Scale;
use crate::sets::Results;
use crate::verdict::Goal;

/// Part of all pages that the churn's writers write every second.
const CHURN: f64 = 0.01;

/// A bystander keeps this much of its speed.
const KEPT: Goal = Goal::AtLeast(0.97);

/// The churn set: guests of `map`, and writers that write 1 % of their pages every second.
///
/// Two bystanders, one after the other. The first reads random pages of all guests as fast as it can, and its writes
/// are the churn. The second reads and writes, half and half and as fast as it can, all over one guest, while the
/// churn goes on in the others.
pub(crate) fn churn(map: &IdentityMap, scale: Scale, results: &mut Results<'_>) -> Result<()> {
    eprintln!("churn: {} pairs of 2 x {:?}", scale.plan.pairs, scale.plan.half);
    let ram = Ram::build(map)?;
    let pages = pages(&ram);
    let total: usize = pages.iter().map(|guest| guest.touched.len()).sum();
    let levy = Levy::adopt(&ram)?;
    levy.converge(3);
    let paced = {
        let bystander = Bystander::start(pages.clone(), Writes::PerSecond(total as f64 * CHURN));
        watch_thread(&bystander, &levy, scale)?
    };
    // Breaks are found by scans, so the states are right only some passes after the last write.
    let freed = levy.converge(8).freed as f64 / ram.oracle().reclaimable as f64;
    let (one, others) = pages.split_first().context("a map without guests")?;
    let full = {
        let _churn = Churn::start(others.to_vec(), total as f64 * CHURN);
        let bystander = Bystander::start(vec![one.clone()], Writes::Half);
        watch_thread(&bystander, &levy, scale)?
    };
    results.number("churn.merged_of_oracle", freed, Goal::AtLeast(0.98));
    store("churn", "reader_ratio", &paced, results);
    store("churn", "writer_ratio", &full, results);
    Ok(())
}

/// A ring-3 guest with the first guest's memory, reading and writing half and half all over it.
pub(crate) fn ring3(map: &IdentityMap, scale: Scale, results: &mut Results<'_>) -> Result<()> {
    if let Err(reason) = ring3::available() {
        ring3::skip("results.ring3", &reason);
        results.report.set("ring3.skipped", reason.to_string());
        return Ok(());
    }
    let ram = Ram::build(map)?;
    let levy = Levy::adopt(&ram)?;
    levy.converge(3);
    let reader = with_guest(&ram, 0, &levy, scale)?;
    store("ring3", "reader_ratio", &reader, results);
    let writer = with_guest(&ram, 512, &levy, scale)?;
    store("ring3", "ratio", &writer, results);
    Ok(())
}

/// The pairs around a guest that makes `write_share` of 1024 accesses writes.
fn with_guest(ram: &Ram, write_share: u16, levy: &Levy, scale: Scale) -> Result<Pairs> {
    eprintln!(
        "ring3: {write_share} of 1024 accesses write, {} pairs of 2 x {:?}",
        scale.plan.pairs, scale.plan.half
    );
    let memory = ram.guests.first().context("a map without guests")?;
    let pages = (memory.len() / ring3::PAGE) as u32;
    let guest = Guest::new(memory, &[Work::access(0..pages, write_share)])?;
    guest.start();
    let pairs = {
        let scanning = levy.scan_in_background()?;
        std::thread::sleep(scale.settle);
        run(
            scale.plan,
            &mut Watched {
                accesses: &|| guest.counters().iter().map(|vcpu| vcpu.reads + vcpu.writes).sum(),
                take_stall: &|| guest.take_longest_stall(0),
                switch: &mut |engine| scanning.switch(engine),
            },
        )
    };
    guest.stop()?;
    Ok(pairs)
}

fn watch_thread(bystander: &Bystander, levy: &Levy, scale: Scale) -> Result<Pairs> {
    let scanning = levy.scan_in_background()?;
    std::thread::sleep(scale.settle);
    Ok(run(
        scale.plan,
        &mut Watched {
            accesses: &|| bystander.accesses(),
            take_stall: &|| bystander.take_stall(),
            switch: &mut |engine| scanning.switch(engine),
        },
    ))
}

/// `set.name` is the ratio itself, `set.name_details` everything else.
fn store(set: &str, name: &str, pairs: &Pairs, results: &mut Results<'_>) {
    eprintln!("{set}.{name}: {}", pairs.line());
    results.number(&format!("{set}.{name}"), pairs.ratio(), KEPT);
    results
        .report
        .set(&format!("{set}.{name}_details"), pairs.to_json());
}

fn pages(ram: &Ram) -> Vec<Pages> {
    let of = |guest: usize| Pages {
        memory: Arc::clone(&ram.guests[guest]),
        touched: ram.touched(guest).into(),
    };
    (0..ram.guests.len()).map(of).collect()
}
