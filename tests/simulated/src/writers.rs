//! Threads that write to the memory all the time, and look at what they wrote before.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use levy::memory::GuestRam;

use crate::memory::{Pages, WORDS, load, store};

/// Visits between two looks at the clock.
const BATCH: u64 = 20;

/// What all writers of a process share.
pub(crate) struct Work {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) pages: Pages,
    pub(crate) writes: AtomicU64,
    pub(crate) wrong: AtomicU64,
    /// Nobody writes while this is set.
    pub(crate) still: AtomicBool,
    /// How often each page was written since it was last as in the beginning, by writer: page `p` is the next one of
    /// writer `p % writers`.
    counts: Vec<Mutex<Vec<u64>>>,
}

impl Work {
    pub(crate) fn new(ram: Arc<GuestRam>, pages: Pages, writers: usize) -> Arc<Self> {
        let own = |id: usize| (0..pages.count).skip(id).step_by(writers).count();
        Arc::new(Self {
            ram,
            pages,
            writes: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            still: AtomicBool::new(false),
            counts: (0..writers).map(|id| Mutex::new(vec![0; own(id)])).collect(),
        })
    }

    /// Starts the writers, each of which visits `rate` pages a second.
    pub(crate) fn start(self: &Arc<Self>, rate: u64) {
        for id in 0..self.counts.len() {
            let work = Arc::clone(self);
            thread::spawn(move || work.write(id, rate));
        }
    }

    /// Looks at every word of every page, while nobody writes; the number that are wrong.
    pub(crate) fn check(&self) -> u64 {
        let before = self.still.swap(true, Ordering::SeqCst);
        let counts: Vec<_> = (0..self.counts.len()).map(|id| self.counts(id)).collect();
        let wrong = (0..self.pages.count)
            .map(|page| {
                let (id, at) = (page as usize % counts.len(), page as usize / counts.len());
                self.pages.wrong(&self.ram, page, counts[id][at])
            })
            .sum();
        self.still.store(before, Ordering::SeqCst);
        wrong
    }

    fn write(&self, id: usize, rate: u64) {
        let mut random = 0x1234_5678_9ABC + id as u64 * 7919 + self.pages.seed;
        let began = Instant::now();
        let mut due = Duration::ZERO;
        loop {
            due += Duration::from_secs(BATCH) / u32::try_from(rate).unwrap_or(u32::MAX).max(1);
            thread::sleep(due.saturating_sub(began.elapsed()));
            due = due.max(began.elapsed().saturating_sub(Duration::from_secs(1)));
            if self.still.load(Ordering::SeqCst) || rate == 0 {
                continue;
            }
            let mut counts = self.counts(id);
            for _ in 0..BATCH {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                self.visit(id, &mut counts, random);
            }
        }
    }

    /// Looks at a page and writes to it; one time in four it is afterwards as in the beginning.
    fn visit(&self, id: usize, counts: &mut [u64], random: u64) {
        let at = (random >> 32) as usize % counts.len();
        let page = (at * self.counts.len() + id) as u64;
        let word = 1 + random % (WORDS - 1);
        let sound = load(&self.ram, page, 0) == counts[at]
            && load(&self.ram, page, word) == self.pages.fixed(page, word);
        if !sound {
            self.wrong.fetch_add(1, Ordering::SeqCst);
        }
        counts[at] = if random & 0xC00 == 0 { 0 } else { counts[at] + 1 };
        store(&self.ram, page, 0, counts[at]);
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    fn counts(&self, id: usize) -> MutexGuard<'_, Vec<u64>> {
        self.counts[id].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
