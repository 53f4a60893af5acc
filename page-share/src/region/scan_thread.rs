//! Scan budgets: two hard limits, a share of one CPU and pages per second, and the thread that keeps them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::region::Region;
use crate::region::kernel::{Mappings, thread_cpu};
use crate::region::options::RegionThread;

/// How much scanning may cost. Both limits hold over any second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Share of one CPU for the scanning thread, from 0.001 to 1. What lies outside counts as the nearer end, and what is
    /// not a number as 0.001.
    pub cpu_share: f64,
    /// Pages scanned or merged per second.
    pub pages_per_second: u32,
}

impl Default for Pace {
    /// A tenth of a CPU and 400 MiB/s.
    fn default() -> Self {
        Self {
            cpu_share: 0.1,
            pages_per_second: 100_000,
        }
    }
}

/// Mappings for a thread's stacks and their guards.
const STACK_MAPPINGS: i64 = 8;

/// Less of a CPU than this would never end a pass.
const LEAST_SHARE: f64 = 0.001;

impl Pace {
    /// How long to rest after a step that took `cpu` of `wall` for `pages` pages.
    fn rest(self, cpu: Duration, wall: Duration, pages: u32) -> Duration {
        let share = match self.cpu_share {
            share if share >= LEAST_SHARE => share.min(1.0),
            // What is not a number is not more either.
            _ => LEAST_SHARE,
        };
        let by_cpu = cpu.div_f64(share);
        let by_pages = Duration::from_secs_f64(f64::from(pages) / f64::from(self.pages_per_second.max(1)));
        by_cpu.max(by_pages).saturating_sub(wall)
    }

    /// Pages for one step: a twentieth of a second's worth.
    fn step(self) -> u32 {
        (self.pages_per_second / 20).clamp(1, 16_384)
    }
}

/// A thread that scans one region for as long as this exists.
#[derive(Debug)]
pub struct ScanThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    pace: Mutex<Pace>,
    stop: AtomicBool,
}

impl ScanThread {
    /// Starts scanning `region`, pass after pass, at `pace`.
    ///
    /// # Errors
    /// When the system refuses a thread, or this process has too few mappings left for its stack.
    pub fn start(region: Arc<Region>, pace: Pace) -> std::io::Result<Self> {
        if !Mappings::of_process().have_room_for(STACK_MAPPINGS) {
            return Err(std::io::Error::other(
                "too few mappings are left below vm.max_map_count",
            ));
        }
        let shared = Arc::new(Shared {
            pace: Mutex::new(pace),
            stop: AtomicBool::new(false),
        });
        let seen = shared.clone();
        let builder = std::thread::Builder::new().name("page-scan".into());
        let thread = builder.spawn(move || {
            region.thread_started.tell(RegionThread::Scanner);
            scan(&region, &seen);
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Changes the pace, also of the rest that is under way.
    pub fn set_pace(&self, pace: Pace) {
        let before = std::mem::replace(&mut *self.shared.pace(), pace);
        if before != pace
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
    }
}

impl Shared {
    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

impl Drop for ScanThread {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn scan(region: &Region, shared: &Shared) {
    while !shared.is_stopped() {
        let step = shared.pace().step();
        let (cpu, wall) = (thread_cpu(), Instant::now());
        let pages = region.scan_step(step).pages.max(1);
        let cpu = thread_cpu() - cpu;
        // Asked again after every wake: the pace may have changed.
        while !shared.is_stopped() {
            let rest = shared.pace().rest(cpu, wall.elapsed(), pages);
            if rest.is_zero() {
                break;
            }
            std::thread::park_timeout(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AnonymousMemory, Gfn, Options};

    #[test]
    fn a_thread_scans_pass_after_pass() {
        let memory = AnonymousMemory::new(64).unwrap();
        let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
        let region = Arc::new(region);
        let pace = Pace {
            cpu_share: 1.0,
            pages_per_second: 1_000_000,
        };
        let _scanning = ScanThread::start(Arc::clone(&region), pace).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while region.stats().passes < 3 {
            assert!(Instant::now() < until, "{:?}", region.stats());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn the_stricter_limit_decides_how_long_to_rest() {
        let pace = Pace {
            cpu_share: 0.25,
            pages_per_second: 1000,
        };
        let ms = Duration::from_millis;
        // 4 x 10 ms of CPU against 5 ms of pages: 40 ms in all, of which 12 are over.
        assert_eq!(pace.rest(ms(10), ms(12), 5), ms(28));
        // 100 pages take 100 ms at this pace, whatever they cost.
        assert_eq!(pace.rest(ms(1), ms(2), 100), ms(98));
        assert_eq!(pace.rest(ms(1), ms(500), 1), ms(0));
    }

    #[test]
    fn no_share_of_a_cpu_is_a_panic() {
        let rest = |cpu_share: f64| {
            let pace = Pace {
                cpu_share,
                pages_per_second: 0,
            };
            pace.rest(Duration::from_millis(1), Duration::ZERO, 0)
        };
        for least in [f64::NAN, f64::NEG_INFINITY, -1.0, -0.0, 0.0, f64::MIN_POSITIVE] {
            assert_eq!(rest(least), Duration::from_secs(1), "{least}");
        }
        for most in [f64::INFINITY, f64::MAX, 1.5, 1.0] {
            assert_eq!(rest(most), Duration::from_millis(1), "{most}");
        }
    }
}
