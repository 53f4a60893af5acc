//! A small VMM that is not Levy and uses its three library crates; docs/library.md explains the steps. KVM and a guest
//! without an operating system come from `ring3`, and the driver half of `balloon-driver` plays its balloon driver.
#![allow(unsafe_code)]
// UNSAFETY: hands memory that this file keeps mapped to a virtual machine.

use std::{ptr::NonNull, sync::Arc, time::Duration};

use allocator::{Claim, Fleet, GuestId, Pages, Plan, Shares, Supply, Tax};
use anyhow::{Context, Result};
use balloon_driver::driver::{Driver, Guest as BalloonGuest, Line};
use balloon_driver::release::{Reason, Release, Released};
use balloon_driver::{Balloon, Frame, Options, Run};
use page_share::{Domain, Gfn, LocalManager, MemoryRange, PageRun, Region};
use ring3::{Counters, Guest, Work};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const PAGES: u32 = 16 << 10;
/// The balloon's rings, what both guests fill alike, what each writes at random, and what is free for the balloon.
const USES: [std::ops::Range<u32>; 4] = [0..1024, 1024..9216, 9216..12288, 12288..PAGES];

/// Frames leave the balloon device through the region, which knows where each of them is.
struct Port(Arc<Region>);

impl Release for Port {
    fn backed(&self) -> Vec<Run> {
        Vec::from_iter(Run::new(Frame::new(0), u64::from(PAGES)))
    }

    fn release(&mut self, runs: &[Run], reason: Reason) -> Released {
        let why = match reason {
            Reason::Inflated => page_share::Release::Balloon,
            Reason::Reported => page_share::Release::Report,
        };
        let mut released = Released::default();
        for run in runs {
            self.0.release(pages(run), why);
            released.frames += run.count();
        }
        released
    }

    fn take_back(&mut self, runs: &[Run]) {
        runs.iter().for_each(|run| self.0.deflate(pages(run)));
    }
}

fn pages(run: &Run) -> PageRun {
    PageRun::new(Gfn::new(run.first().number() as u32), run.count() as u32)
}

/// One guest. Its vCPUs go first; the balloon and the region keep the memory.
struct Tenant {
    cpus: Guest,
    balloon: Balloon<Arc<GuestMemoryMmap>, Port>,
    driver: BalloonGuest<Arc<GuestMemoryMmap>>,
    region: Arc<Region>,
}

impl Tenant {
    fn new(number: u64, manager: &LocalManager) -> Result<Self> {
        let bytes = PAGES as usize * ring3::PAGE;
        let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), bytes)])?);
        let [rings, common, heap, free] = USES;
        // 1. The region adopts the memory, joins a sharing domain, and leaves alone what devices write all the time.
        let ranges = MemoryRange::all_of_vm_memory(&memory).context("memory that cannot be adopted")?;
        let region = Arc::new(Region::adopt(ranges, page_share::Options::default())?);
        region.connect(Box::new(manager.attach(region.page_limit())?))?;
        region.never(PageRun::new(Gfn::new(rings.start), rings.end));
        // 2. The balloon device, and who plays its driver.
        let mut balloon = Balloon::new(Options::default(), Port(region.clone()));
        let (features, line) = (balloon.features(), Arc::new(Line::default()));
        let driver = Driver::new(memory.clone(), GuestAddress(0), features)?;
        // Nothing is on the queues yet.
        let _ = balloon.activate(features, memory.clone(), driver.queues()?, line.clone())?;
        let mut driver = BalloonGuest::new(memory.clone(), driver, line, free.clone().collect());
        for _ in 0..number {
            driver.allocate(free.len())?;
            driver.release(free.len())?;
        }
        // 3. The guest runs over the same memory. The engine needs nothing of KVM.
        let mut work = [Work::fill_unlike(common, 1), Work::access(heap, 512)];
        work[1].seed += number;
        let host = NonNull::new(memory.get_host_address(GuestAddress(0))?).context("no address")?;
        // SAFETY: the balloon and the region keep the memory, and the vCPUs end before either.
        let cpus = unsafe { Guest::over(host, bytes, &work) }?;
        cpus.start();
        let filled = |cpus: &[Counters]| cpus[0].passes > 0 && cpus[1].writes > 100_000;
        cpus.wait(Duration::from_secs(60), filled)?;
        region.scan_pass();
        Ok(Self {
            cpus,
            balloon,
            driver,
            region,
        })
    }

    fn held(&self) -> u64 {
        self.region.stats().private + self.region.stats().broken
    }

    /// 4. What the policy wants to know: how much is held, and how much of it is in use, by sampling.
    fn claim(&self, number: u64) -> Claim {
        self.region.start_sample(512);
        std::thread::sleep(Duration::from_millis(500));
        let (sample, held, max) = (self.region.finish_sample(), self.held(), Pages::from_mib(64));
        let mut claim = Claim::new(GuestId::new(number), Pages::ZERO, max, Shares::NORMAL);
        claim.active = Pages::new(held * u64::from(sample.touched) / u64::from(sample.taken.max(1)));
        claim.shared = Pages::new(self.region.stats().shared);
        claim.holding.held = Pages::new(held);
        let (room, size) = (Pages::new(self.driver.free()), Pages::ZERO);
        claim.holding.balloon = allocator::Balloon::Answers { room, size };
        claim
    }
}

fn main() -> Result<()> {
    if let Err(reason) = ring3::available() {
        ring3::skip("foreign-vmm", &reason);
        return Ok(());
    }
    let manager = LocalManager::new(Domain::new(2 * PAGES)?);
    let mut tenants = [Tenant::new(1, &manager)?, Tenant::new(2, &manager)?];
    let before = tenants[0].held() + tenants[1].held();
    tenants[1].cpus.set_pace(1, Duration::from_millis(100)); // the second guest goes idle
    (0..4).for_each(|_| tenants.iter().for_each(|tenant| tenant.region.scan_pass()));
    let sizes = manager.with(|domain| domain.sizes()).context("no manager")?;
    let pool = u64::from(sizes.pool_pages);
    let after = tenants[0].held() + tenants[1].held() + pool;
    println!("sharing: {before} pages held, now {after}, {pool} of them in the pool");
    let claims = [tenants[0].claim(1), tenants[1].claim(2)];
    let (memory, tax) = (Pages::new(after - pool - 3000), Tax::DEFAULT);
    let plan = Plan::compute(&Fleet::new(Supply { memory, tax }, &[], &claims)?);
    for ((tenant, claim), target) in tenants.iter_mut().zip(&claims).zip(plan.targets()) {
        let (held, target) = (claim.holding.held.get(), target.pages.get());
        let frames = held.saturating_sub(target).min(tenant.driver.free());
        // 5. What the policy says is the balloon's target.
        tenant.balloon.set_target(frames)?;
        while tenant.balloon.ballooned() < frames {
            tenant.driver.step(&mut tenant.balloon)?;
            tenant.driver.kick(&mut tenant.balloon)?;
        }
        let active = claim.active.get();
        println!("{held} held, {active} active, target {target}, {frames} ballooned");
        tenant.cpus.stop()?;
    }
    let end = tenants[0].held() + tenants[1].held() + pool;
    println!("saved {} MiB", before.saturating_sub(end) / 256);
    Ok(())
}
