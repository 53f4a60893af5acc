//! One state byte per page, changed by compare-exchange, and what else is known about the page.
//!
//! A page changes hands only through [`PageTable::claim`]: the thread that moves it to [`State::InTransit`] owns it,
//! makes every call that fills or empties it, settles it, and then wakes the threads that faulted meanwhile.

use crate::page::Gfn;
use crate::region::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use crate::region::run::PageRun;

/// Where a page's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// No memory of this guest: a hole between two ranges.
    Hole,
    /// Nowhere: reads zero when touched.
    Empty,
    /// In guest memory, in a page of its own.
    Private,
    /// In guest memory, the kernel's shared zero page, or private if it was written since the last look.
    Zero,
    /// In the hands of one thread, which settles it and wakes the waiters.
    InTransit,
    /// In the sampling area; the first touch brings it back and is counted.
    Sampled,
    /// A copy-on-write mapping of a pool page.
    Shared,
    /// As shared, but the kernel has made a private copy at the guest's write.
    Broken,
    /// In the compressed store.
    Compressed,
    /// In the swap file.
    Swapped,
    /// Given up by the guest through its balloon. Reads zero when touched.
    Ballooned,
    /// Lost by a failing swap file: every access fails like one to broken memory.
    Lost,
    /// Inside a block left to the kernel as a huge page; not watched.
    Huge,
}

/// Number of states.
pub(crate) const STATES: usize = 13;

impl State {
    const ALL: [Self; STATES] = [
        Self::Hole,
        Self::Empty,
        Self::Private,
        Self::Zero,
        Self::InTransit,
        Self::Sampled,
        Self::Shared,
        Self::Broken,
        Self::Compressed,
        Self::Swapped,
        Self::Ballooned,
        Self::Lost,
        Self::Huge,
    ];

    fn from_byte(byte: u8) -> Self {
        Self::ALL[usize::from(byte)]
    }

    /// Whether a claimed page may settle as `to` after having been `self`. What it was is always allowed.
    pub(crate) fn may_become(self, to: Self) -> bool {
        use State::{
            Ballooned, Broken, Compressed, Empty, Hole, Huge, InTransit, Lost, Private, Sampled, Shared,
            Swapped, Zero,
        };
        self == to
            || match (self, to) {
                (Hole, _) | (_, Hole | InTransit) | (InTransit, _) => false,
                // The guest may give up anything, and anything unmanaged can become managed and back.
                (_, Empty | Ballooned) => true,
                (Empty | Ballooned, Private | Zero) | (Huge, Private) => true,
                (Private | Zero, Sampled | Compressed | Swapped) => true,
                (Private | Zero, Shared | Zero | Private | Huge) => true,
                (Sampled | Compressed | Swapped | Shared | Broken, Private | Zero) => true,
                (Swapped | Compressed, Lost) | (Compressed, Swapped) => true,
                (Shared, Broken) => true,
                _ => false,
            }
    }

    /// Whether the page is in a mapping of a pool.
    pub(crate) fn is_pool(self) -> bool {
        matches!(self, Self::Shared | Self::Broken)
    }

    /// Whether the page's content is in guest memory and shared with no other guest.
    pub(crate) fn is_private(self) -> bool {
        matches!(self, Self::Private | Self::Zero)
    }
}

/// Pages held by one thread: a run that was in one state and is in transit now. Must be settled.
#[derive(Debug)]
#[must_use = "a claimed page blocks its guest until it is settled"]
pub(crate) struct Claim {
    run: PageRun,
    from: State,
}

impl Claim {
    /// The pages.
    pub(crate) fn run(&self) -> PageRun {
        self.run
    }

    /// What they were.
    pub(crate) fn from(&self) -> State {
        self.from
    }

    /// The first `count` pages and the rest.
    pub(crate) fn split(self, count: u32) -> (Self, Self) {
        assert!(count <= self.run.count);
        let (run, from) = (self.run, self.from);
        std::mem::forget(self);
        let at = run.first.get() + count;
        let head = Self {
            run: PageRun::new(run.first, count),
            from,
        };
        (
            head,
            Self {
                run: PageRun::new(Gfn::new(at), run.count - count),
                from,
            },
        )
    }

    /// Stretches of pages of which `test` says the same.
    pub(crate) fn split_by(self, test: impl Fn(u32) -> bool) -> Vec<(Self, bool)> {
        let (mut left, mut parts) = (self, Vec::new());
        while left.run.count > 0 {
            let run = left.run;
            let answer = test(run.first.get());
            let alike = run.numbers().skip(1).take_while(|&page| test(page) == answer);
            let length = 1 + alike.count() as u32;
            let (part, rest) = left.split(length);
            left = rest;
            parts.push((part, answer));
        }
        drop(left);
        parts
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // An owner that forgets a page would leave a guest waiting for ever.
        assert!(
            self.run.count == 0 || std::thread::panicking(),
            "{self:?} was never settled"
        );
    }
}

/// What a page is not to be used for.
pub(crate) mod mark {
    /// The caller said never to touch it.
    pub(crate) const EXCLUDED: u8 = 1;
    /// The kernel refused to move it: pinned, or shared with a forked child. Cleared when it is written.
    pub(crate) const STUCK: u8 = 2;
    /// The manager knows it as a hint.
    pub(crate) const REPORTED: u8 = 4;
    /// Its content cannot be shared: another content has the same sketch.
    pub(crate) const UNSHARABLE: u8 = 8;
    /// It could have been merged, but there was no mapping left for it, or no room in the pool.
    pub(crate) const LEFT_OUT: u8 = 16;
    /// It differed from the pool page that it was thought to equal: no guesses about it before it has been merged.
    pub(crate) const DIFFERED: u8 = 32;
    /// The swap thread has it, for as long as its disk takes. Neither empty before nor in a pool; private afterwards, or
    /// where it was, or lost.
    pub(crate) const READING: u8 = 64;
}

/// State, detail, marks and pins of every page, indexed by [`Gfn`]. 7.1 bytes a page, all touched when it is made.
pub(crate) struct PageTable {
    states: Box<[AtomicU8]>,
    details: Box<[AtomicU32]>,
    marks: Box<[AtomicU8]>,
    pins: Box<[AtomicU8]>,
    pending: Box<[AtomicU64]>,
}

impl PageTable {
    /// A table of `pages` holes.
    pub(crate) fn new(pages: u32) -> Self {
        Self {
            states: (0..pages).map(|_| AtomicU8::new(State::Hole as u8)).collect(),
            details: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            marks: (0..pages).map(|_| AtomicU8::new(0)).collect(),
            pins: (0..pages).map(|_| AtomicU8::new(0)).collect(),
            pending: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Pages in the table, holes included.
    pub(crate) fn pages(&self) -> u32 {
        self.states.len() as u32
    }

    /// Bytes that the table takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.states.len() as u64 * 7 + self.pending.len() as u64 * 8
    }

    /// The state of page `page` just now.
    pub(crate) fn state(&self, page: u32) -> State {
        State::from_byte(self.states[page as usize].load(Ordering::Acquire))
    }

    /// Claims one page if it is in state `from`.
    pub(crate) fn claim(&self, page: u32, from: State) -> Option<Claim> {
        self.enter(page, from).then(|| Claim {
            run: PageRun::new(Gfn::new(page), 1),
            from,
        })
    }

    /// Claims the longest start of `run` whose pages are all in state `from` and, unless `pinned` is to be ignored,
    /// have no I/O in flight. The page with I/O in flight that ended the run was owned for a moment, so that a fault may
    /// have been left to its owner: it comes back as a claim too, to be settled as it was.
    pub(crate) fn claim_run(
        &self,
        run: PageRun,
        from: State,
        pinned: Pinned,
    ) -> (Option<Claim>, Option<Claim>) {
        let claim = |range: std::ops::Range<u32>| {
            let run = PageRun::of(range);
            (run.count > 0).then_some(Claim { run, from })
        };
        let first = run.first.get();
        for page in run.numbers() {
            if !self.enter(page, from) {
                return (claim(first..page), None);
            }
            // Sequentially consistent on both sides: either this sees the pin, or the pin sees the transit.
            if pinned == Pinned::Leave && self.pins[page as usize].load(Ordering::SeqCst) != 0 {
                return (claim(first..page), claim(page..page + 1));
            }
        }
        (claim(run.numbers()), None)
    }

    fn enter(&self, page: u32, from: State) -> bool {
        let in_transit = State::InTransit as u8;
        from != State::InTransit
            && self.states[page as usize]
                .compare_exchange(from as u8, in_transit, Ordering::SeqCst, Ordering::Acquire)
                .is_ok()
    }

    /// Ends a claim: all its pages are `to` from now on. Wake their waiters afterwards.
    ///
    /// # Panics
    /// When the step is not one that a page can take: our bug.
    pub(crate) fn settle(&self, claim: Claim, to: State) {
        assert!(claim.from.may_become(to), "{claim:?} cannot become {to:?}");
        for page in claim.run.numbers() {
            let before = self.states[page as usize].swap(to as u8, Ordering::SeqCst);
            assert_eq!(
                State::from_byte(before),
                State::InTransit,
                "page {page:#x} was settled twice"
            );
        }
        std::mem::forget(claim);
    }

    /// One step that needs no owner because the page stays where it is: zero or private as the last look found it,
    /// shared to broken. `false` when the page was something else meanwhile.
    pub(crate) fn relabel(&self, page: u32, from: State, to: State) -> bool {
        debug_assert!(matches!(
            (from, to),
            (State::Private, State::Zero) | (State::Zero, State::Private) | (State::Shared, State::Broken)
        ));
        self.state(page) == from
            && self.states[page as usize]
                .compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::Acquire)
                .is_ok()
    }

    /// Makes holes into pages in transit: the first step of adopting memory.
    pub(crate) fn found(&self, run: PageRun) -> Claim {
        for page in run.numbers() {
            self.states[page as usize].store(State::InTransit as u8, Ordering::SeqCst);
        }
        Claim {
            run,
            from: State::Huge,
        }
    }

    /// Number of pages in each state, by `State as usize`.
    pub(crate) fn census(&self) -> [u64; STATES] {
        let mut counts = [0; STATES];
        for state in &self.states {
            counts[usize::from(state.load(Ordering::Relaxed))] += 1;
        }
        counts
    }

    /// The slot, store handle or sampling place of a page, as its state says.
    pub(crate) fn detail(&self, page: u32) -> u32 {
        self.details[page as usize].load(Ordering::Acquire)
    }

    /// Sets it. Only for the page's owner.
    pub(crate) fn set_detail(&self, page: u32, detail: u32) {
        self.details[page as usize].store(detail, Ordering::Release);
    }

    /// Whether any of `marks` is on the page.
    pub(crate) fn is_marked(&self, page: u32, marks: u8) -> bool {
        self.marks[page as usize].load(Ordering::Relaxed) & marks != 0
    }

    /// Puts marks on.
    pub(crate) fn add_marks(&self, page: u32, marks: u8) {
        self.marks[page as usize].fetch_or(marks, Ordering::Relaxed);
    }

    /// Takes marks off; whether any was on.
    pub(crate) fn clear_marks(&self, page: u32, marks: u8) -> bool {
        // Most pages have none, and a plain load is much cheaper than an exchange.
        self.is_marked(page, marks)
            && self.marks[page as usize].fetch_and(!marks, Ordering::Relaxed) & marks != 0
    }

    /// Pages written since they were last hashed, 64 to a word.
    pub(crate) fn pending_word(&self, word: usize) -> u64 {
        self.pending[word].load(Ordering::Relaxed)
    }

    /// Marks a page as written since it was last hashed, or not.
    pub(crate) fn set_pending(&self, page: u32, pending: bool) {
        // Most pages are what they are to be, and a plain load is much cheaper than an exchange.
        if self.is_pending(page) == pending {
            return;
        }
        let bit = 1 << (page % 64);
        let word = &self.pending[page as usize / 64];
        match pending {
            true => word.fetch_or(bit, Ordering::Relaxed),
            false => word.fetch_and(!bit, Ordering::Relaxed),
        };
    }

    /// Whether the page was written since it was last hashed.
    pub(crate) fn is_pending(&self, page: u32) -> bool {
        self.pending_word(page as usize / 64) & (1 << (page % 64)) != 0
    }

    /// Counts one more I/O in flight on the page. `false` when 255 are already.
    pub(crate) fn pin(&self, page: u32) -> bool {
        let pins = &self.pins[page as usize];
        pins.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_add(1))
            .is_ok()
    }

    /// Whether some thread owns the page. `false` after a pin: a thread that owns it from now on sees the pin.
    pub(crate) fn is_held(&self, page: u32) -> bool {
        // Sequentially consistent, like the owner's look at the pins: with less, each could miss the other.
        self.states[page as usize].load(Ordering::SeqCst) == State::InTransit as u8
    }

    /// Whether some thread owns the page and settles it without waiting for a disk.
    pub(crate) fn is_held_for_a_moment(&self, page: u32) -> bool {
        // In this order: a page that the handler leaves to the swap thread is marked while it is held.
        self.is_held(page) && !self.is_marked(page, mark::READING)
    }

    /// Whether the swap thread has the page.
    pub(crate) fn is_being_read(&self, page: u32) -> bool {
        self.is_held(page) && self.is_marked(page, mark::READING)
    }

    /// One I/O less in flight.
    pub(crate) fn unpin(&self, page: u32) {
        let before = self.pins[page as usize].fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "page {page:#x} was not pinned");
    }
}

/// What to do about pages with I/O in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pinned {
    /// Leave them where they are.
    Leave,
    /// Claim them all the same: the guest gives them up.
    Ignore,
}
