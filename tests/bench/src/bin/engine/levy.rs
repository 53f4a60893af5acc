//! The engine under test: one region per guest and one manager, all in this process.
#![allow(unsafe_code)]
// UNSAFETY: hands memory that this bench owns to regions.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use levy_bench::process_cpu;
use page_share::{Domain, Gfn, LocalManager, MemoryRange, Options, Pace, Region, ScanThread, Stats, Swap};
use ring3::{Memory, PAGE};

use crate::pairs::Engine;
use crate::ram::Ram;

/// Memory that compressed pages may take, and pages in the swap file, for each guest.
const STORE_BYTES: usize = 64 << 20;
const SWAP_PAGES: u32 = 65_536;

/// How little "off" is: no step of the scanner is shorter than its pace allows, so a pace near zero stops it.
const STOPPED: Pace = Pace {
    cpu_share: 0.001,
    pages_per_second: 1,
};

/// What merging a data set took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Converged {
    /// Pages freed: all but one of each content in the pool, and zero pages.
    pub(crate) freed: u64,
    /// Passes until 99.5 % of that were freed.
    pub(crate) passes: u32,
    /// CPU of the whole process until then.
    pub(crate) cpu: Duration,
    /// Pages freed until then.
    pub(crate) freed_by_then: u64,
    /// Index, pool's books, page states and the kernel's memory for mappings.
    pub(crate) metadata_bytes: u64,
}

impl Converged {
    /// CPU for each page freed.
    pub(crate) fn cpu_us_per_page(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.freed_by_then.max(1) as f64
    }
}

/// Regions over all guests of a data set, and their manager.
pub(crate) struct Levy {
    manager: LocalManager,
    regions: Vec<Arc<Region>>,
    bytes: usize,
    // The regions' memory, kept until they are gone.
    _memory: Vec<Arc<Memory>>,
}

impl Levy {
    /// Takes all memory of `ram` under management.
    pub(crate) fn adopt(ram: &Ram) -> Result<Self> {
        let pool_pages = (ram.bytes() / PAGE) as u32;
        let manager = LocalManager::new(Domain::new(pool_pages).context("cannot make a pool")?);
        let regions = ram
            .guests
            .iter()
            .map(|memory| {
                let region = adopt(memory)?;
                let port = manager
                    .attach(region.page_limit())
                    .context("cannot attach to the manager")?;
                region.connect(Box::new(port)).context("cannot map the pool")?;
                Ok(Arc::new(region))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            manager,
            regions,
            bytes: ram.bytes(),
            _memory: ram.guests.clone(),
        })
    }

    /// The regions, in the order of their guests.
    pub(crate) fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// One pass over every region.
    pub(crate) fn pass(&self) {
        for region in &self.regions {
            region.scan_pass();
        }
    }

    /// Passes until nothing more is gained, `most` of them at most.
    pub(crate) fn converge(&self, most: u32) -> Converged {
        let start = process_cpu();
        let marks: Vec<(u64, Duration)> = (0..most)
            .map(|_| {
                self.pass();
                (self.freed(), process_cpu() - start)
            })
            .collect();
        let last = marks.last().map_or(0, |(freed, _)| *freed);
        let passes = marks
            .iter()
            .position(|(freed, _)| *freed >= last - last / 200)
            .unwrap_or(0);
        let (freed_by_then, cpu) = marks.get(passes).copied().unwrap_or_default();
        Converged {
            freed: last,
            passes: passes as u32 + 1,
            cpu,
            freed_by_then,
            metadata_bytes: self.metadata_bytes(),
        }
    }

    /// CPU of one pass over unchanged memory, per GiB; mean of `passes`.
    pub(crate) fn idle_ms_per_gib(&self, passes: u32) -> f64 {
        // Whatever is still under way ends first.
        let mut before = self.freed();
        for _ in 0..10 {
            self.pass();
            let now = self.freed();
            if now == before {
                break;
            }
            before = now;
        }
        let start = process_cpu();
        for _ in 0..passes {
            self.pass();
        }
        let cpu = (process_cpu() - start).as_secs_f64() * 1e3;
        cpu / f64::from(passes) / (self.bytes as f64 / f64::from(1 << 30))
    }

    /// Pages freed by now: those mapped from the pool beyond the pool's own, and zero pages.
    pub(crate) fn freed(&self) -> u64 {
        let stats = self.stats();
        let zeroed: u64 = stats.iter().map(|stats| stats.zero).sum();
        let shared: u64 = stats.iter().map(|stats| stats.shared).sum();
        let pool = self.manager.with(|domain| domain.sizes().pool_pages).unwrap_or(0);
        shared.saturating_sub(u64::from(pool)) + zeroed
    }

    /// Counters of all regions.
    pub(crate) fn stats(&self) -> Vec<Stats> {
        self.regions.iter().map(|region| region.stats()).collect()
    }

    /// Scans every region on a thread of its own at the default pace, as a VMM process does.
    pub(crate) fn scan_in_background(&self) -> Result<Scanning> {
        let start = |region: &Arc<Region>| ScanThread::start(Arc::clone(region), Pace::default());
        let threads = self.regions.iter().map(start).collect::<std::io::Result<_>>();
        Ok(Scanning(threads.context("cannot start scanning")?))
    }

    fn metadata_bytes(&self) -> u64 {
        let manager = self
            .manager
            .with(|domain| domain.sizes().metadata_bytes())
            .unwrap_or(0);
        manager + self.stats().iter().map(|stats| stats.metadata_bytes).sum::<u64>()
    }
}

/// Background scanning of all regions, for as long as this exists.
pub(crate) struct Scanning(Vec<ScanThread>);

impl Scanning {
    /// Lets it work or rest.
    pub(crate) fn switch(&self, engine: Engine) {
        let pace = match engine {
            Engine::On => Pace::default(),
            Engine::Off => STOPPED,
        };
        for thread in &self.0 {
            thread.set_pace(pace);
        }
    }
}

fn adopt(memory: &Memory) -> Result<Region> {
    // SAFETY: the memory is private and anonymous, and `Levy` keeps it mapped for longer than its regions.
    let range = unsafe { MemoryRange::adopt(Gfn::new(0), memory.as_ptr(), (memory.len() / PAGE) as u32) };
    let swap = Swap::create(&std::env::temp_dir(), SWAP_PAGES).context("cannot make a swap file")?;
    let options = Options::default().with_store_bytes(STORE_BYTES).with_swap(swap);
    Ok(Region::adopt(vec![range], options)?)
}
