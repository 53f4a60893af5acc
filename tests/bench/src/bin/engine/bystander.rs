//! Threads that use memory while an engine works on it: a free-running bystander, and writers at a fixed rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use levy_bench::Random;
use ring3::{Memory, PAGE};

/// Accesses between two looks at the clock: a stall is still seen whole, the clock costs a few percent.
const BATCH: u32 = 16;

/// Pages of one guest that a thread may touch.
#[derive(Clone)]
pub(crate) struct Pages {
    pub(crate) memory: Arc<Memory>,
    pub(crate) touched: Arc<[u32]>,
}

/// How often a bystander writes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Writes {
    /// Every second access on average.
    Half,
    /// As often as makes this many a second; all other accesses read.
    PerSecond(f64),
}

/// A thread that reads and writes random words of random pages as fast as it can.
pub(crate) struct Bystander {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    accesses: AtomicU64,
    stall_ns: AtomicU64,
}

impl Bystander {
    /// Starts it on the pages of some guests.
    pub(crate) fn start(pages: Vec<Pages>, writes: Writes) -> Self {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || of_thread.access(&pages, writes));
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Accesses so far.
    pub(crate) fn accesses(&self) -> u64 {
        self.shared.accesses.load(Ordering::Relaxed)
    }

    /// The longest time that a batch of accesses took since this was last asked.
    pub(crate) fn take_stall(&self) -> Duration {
        Duration::from_nanos(self.shared.stall_ns.swap(0, Ordering::Relaxed))
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Panics abort, so it can only have ended well.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn access(&self, pages: &[Pages], writes: Writes) {
        let mut random = Random::new(1);
        let start = Instant::now();
        let (mut last, mut written) = (start, 0.0);
        while !self.stop.load(Ordering::Relaxed) {
            let due = match writes {
                Writes::Half => u32::MAX,
                Writes::PerSecond(rate) => (rate * (last - start).as_secs_f64() - written).max(0.0) as u32,
            };
            let mut left = due;
            for _ in 0..BATCH {
                let word = random.number();
                let (memory, at) = place(pages, word);
                // Half of the accesses write while writes are due.
                if left > 0 && word & 1 == 0 {
                    memory.write(at, word);
                    left -= 1;
                } else {
                    std::hint::black_box(memory.read(at));
                }
            }
            written += f64::from(due - left);
            let now = Instant::now();
            self.stall_ns
                .fetch_max((now - last).as_nanos() as u64, Ordering::Relaxed);
            self.accesses.fetch_add(u64::from(BATCH), Ordering::Relaxed);
            last = now;
        }
    }
}

/// A thread that writes a part of all pages every second, and otherwise sleeps.
pub(crate) struct Churn {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Churn {
    /// Writes one word each to `pages_per_second` random pages.
    pub(crate) fn start(pages: Vec<Pages>, pages_per_second: f64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let of_thread = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut random = Random::new(2);
            let (start, mut written) = (Instant::now(), 0);
            while !of_thread.load(Ordering::Relaxed) {
                let due = (start.elapsed().as_secs_f64() * pages_per_second) as u64;
                for _ in written..due {
                    let word = random.number();
                    let (memory, at) = place(&pages, word);
                    memory.write(at, word);
                }
                written = due;
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // As above.
            let _ = thread.join();
        }
    }
}

/// A random word of a random touched page of a random guest.
fn place(pages: &[Pages], random: u64) -> (&Memory, usize) {
    let high = (random >> 32) as usize;
    let guest = &pages[high % pages.len()];
    let page = guest.touched[(high / pages.len()) % guest.touched.len()] as usize;
    (&guest.memory, page * PAGE + (random as usize & 0xff8))
}
