//! Threads that write to the memory all the time, and look at what they wrote before.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use levy_machine::memory::GuestRam;

use crate::contents::Written;
use crate::memory::{Pages, WORDS, load, store};

/// Words of a page that differ from the beginning before it goes back to it.
const MOST_WRITTEN: usize = 16;

/// Visits between two looks at the clock.
const BATCH: u64 = 20;

/// What all writers of a process share.
pub(crate) struct Work {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) pages: Pages,
    pub(crate) writes: AtomicU64,
    pub(crate) wrong: AtomicU64,
    /// No writer writes while this is set.
    pub(crate) still: AtomicBool,
    /// What was written to each page since it was last as in the beginning, by writer: page `p` is the next one of writer
    /// `p % writers`.
    written: Vec<Mutex<Vec<Written>>>,
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
            written: (0..writers)
                .map(|id| Mutex::new(vec![Written::default(); own(id)]))
                .collect(),
        })
    }

    /// Starts the writers, each of which visits `rate` pages a second.
    pub(crate) fn start(self: &Arc<Self>, rate: u64) {
        for id in 0..self.written.len() {
            let work = Arc::clone(self);
            thread::spawn(move || work.write(id, rate));
        }
    }

    /// Looks at every word of every page, while no writer writes; the number that are wrong.
    pub(crate) fn check(&self) -> u64 {
        let before = self.still.swap(true, Ordering::SeqCst);
        let written: Vec<_> = (0..self.written.len()).map(|id| self.written(id)).collect();
        let wrong = (0..self.pages.count)
            .map(|page| {
                let (id, at) = (page as usize % written.len(), page as usize / written.len());
                self.pages.wrong(&self.ram, page, &written[id][at])
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
            let mut written = self.written(id);
            for _ in 0..BATCH {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                self.visit(id, &mut written, random);
            }
        }
    }

    /// Looks at two words of a page and writes to one of them; one time in four the page is afterwards as in the beginning.
    fn visit(&self, id: usize, written: &mut [Written], random: u64) {
        let at = (random >> 32) as usize % written.len();
        let page = (at * self.written.len() + id) as u64;
        let words = [random % WORDS, (random >> 12) % WORDS];
        let is_sound = |&word: &u64| {
            let expected = written[at].expected(word as usize, self.pages.fixed(page, word));
            load(&self.ram, page, word) == expected
        };
        if !words.iter().all(is_sound) {
            self.wrong.fetch_add(1, Ordering::SeqCst);
        }
        let written = &mut written[at];
        if random & 0xC0_0000 == 0 || written.count() >= MOST_WRITTEN {
            for word in written.undo() {
                store(&self.ram, page, word as u64, self.pages.fixed(page, word as u64));
            }
        } else {
            written.set(words[0] as usize, random);
            store(&self.ram, page, words[0], random);
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    fn written(&self, id: usize) -> MutexGuard<'_, Vec<Written>> {
        self.written[id].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
