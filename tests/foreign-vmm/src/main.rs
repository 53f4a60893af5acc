//! A small VMM that is not Levy and joins a running `levy host`; docs/library.md explains the steps. KVM and a guest
//! without an operating system come from `ring3`, the driver half of `balloon-driver` plays its balloon driver.
//!
//! `foreign-vmm RUN-DIR NAME DOMAIN IMAGE` runs until its manager says stop, or its input ends.
#![allow(unsafe_code)]
// UNSAFETY: hands memory that this process keeps mapped to a virtual machine.

mod balloon;
mod memory;

use std::{io, path::Path, ptr::NonNull, sync::Arc, thread, time::Duration};

use anyhow::{Context, Result, anyhow};
use levy_member::{Duties, Introduction, ManagedMemory, ManagerClient, PlainMemory, PolledDuties};
use levy_protocol::link::Hello;
use memory::{BYTES, CHURNED, FILLED, RINGS, View};
use page_share::{Gfn, MemoryRange, PageRun};
use ring3::{Guest, Work};
use vm_memory::{GuestAddress, GuestMemoryBackend};

fn main() -> Result<()> {
    let words: Result<[String; 4], _> = std::env::args().skip(1).collect::<Vec<_>>().try_into();
    let [dir, name, domain, image] = words.map_err(|_| anyhow!("foreign-vmm RUN-DIR NAME DOMAIN IMAGE"))?;
    // 1. The manager is asked before anything costs memory.
    let hello = Hello::new(name, BYTES as u64).with_min(BYTES as u64 / 8);
    let introduction = Introduction::make(Path::new(&dir), hello.in_domain(domain))?;
    // 2. The memory comes under management, but for what devices write all the time.
    let image = std::fs::read(image)?;
    let view = memory::load(&image)?;
    let ranges = MemoryRange::all_of_vm_memory(&view).context("memory that cannot be adopted")?;
    let managed = ManagedMemory::start(&Arc::new(PlainMemory::new(ranges)), Some("/var/tmp".into()))?;
    let region = Arc::clone(managed.region());
    region.exclude(PageRun::new(Gfn::new(RINGS.start), RINGS.end));
    // 3. From here on the guest is limited, sampled and reported on.
    let duties = PolledDuties::default();
    let client = ManagerClient::start(introduction, managed, Box::new(duties.clone()))?;
    // 4. The guest runs over the same memory. The library needs nothing of KVM.
    let mut balloon = balloon::Ends::plug(&view, region)?;
    let cpus = start(&view)?;
    let mut input = duties.clone();
    thread::spawn(move || io::copy(&mut io::stdin(), &mut io::sink()).map(|_| input.stop()));
    while !duties.stop_asked() {
        cpus.check()?;
        duties.set_balloon(balloon.work(duties.balloon_asked())?);
        let pause = duties.pause_asked();
        match (pause, duties.is_paused()) {
            (true, false) => cpus.pause()?,
            (false, true) => cpus.resume(),
            _ => {}
        }
        duties.set_paused(pause);
        thread::sleep(Duration::from_millis(10));
    }
    // 5. The guest ends, then its management, then its memory.
    let changes = cpus.stop()?[1].writes;
    let bytes = memory::check(&view, &image, &cpus)?;
    println!("{bytes} bytes are right after {changes} changes");
    drop((cpus, balloon));
    client.leave();
    Ok(())
}

/// One virtual CPU fills its part once, one changes and checks its own all the time.
fn start(view: &View) -> Result<Guest> {
    let work = [Work::fill_unlike(FILLED, 1), Work::churn(CHURNED, 256, 1024)];
    let host = NonNull::new(view.get_host_address(GuestAddress(0))?).context("no address")?;
    // SAFETY: main keeps the memory until after the virtual CPUs have ended.
    let cpus = unsafe { Guest::over(host, BYTES, &work) }?;
    cpus.set_pace(1, Duration::from_micros(200));
    cpus.start();
    Ok(cpus)
}
