//! One state byte per page, changed by compare-exchange, and what else is known about the page.

use crate::page::Gfn;
use crate::region::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use crate::region::run::PageRun;
use crate::region::table::state::STATES;
use crate::region::table::{Claim, Location, Marks, State};

/// State, location, marks and pins of every page, indexed by [`Gfn`]. 7.1 bytes a page, all touched when it is made.
pub(crate) struct PageTable {
    states: Box<[AtomicU8]>,
    locations: Box<[AtomicU32]>,
    marks: Box<[AtomicU8]>,
    pins: Box<[AtomicU8]>,
    pending: Box<[AtomicU64]>,
}

impl PageTable {
    /// A table of `pages` holes.
    pub(crate) fn new(pages: u32) -> Self {
        Self {
            states: (0..pages).map(|_| AtomicU8::new(State::Hole as u8)).collect(),
            locations: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            marks: (0..pages).map(|_| AtomicU8::new(0)).collect(),
            pins: (0..pages).map(|_| AtomicU8::new(0)).collect(),
            pending: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Pages in the table, holes included.
    pub(crate) fn pages(&self) -> u32 {
        self.states.len() as u32
    }

    /// All of them.
    pub(crate) fn all(&self) -> PageRun {
        PageRun::new(Gfn::new(0), self.pages())
    }

    /// Bytes that the table takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.states.len() as u64 * 7 + self.pending.len() as u64 * 8
    }

    /// The state of page `page` just now.
    pub(crate) fn state(&self, page: Gfn) -> State {
        State::from_byte(self.states[index(page)].load(Ordering::Acquire))
    }

    /// Claims one page if it is in state `from`.
    pub(crate) fn claim(&self, page: Gfn, from: State) -> Option<Claim> {
        self.enter(page, from)
            .then(|| Claim::new(PageRun::one(page), from))
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
        let claim = |run: PageRun| (run.count > 0).then(|| Claim::new(run, from));
        let before = |page: Gfn| claim(PageRun::between(run.first, page));
        for page in run.pages() {
            if !self.enter(page, from) {
                return (before(page), None);
            }
            // Sequentially consistent on both sides: either this sees the pin, or the pin sees the transit.
            if pinned == Pinned::Leave && self.pins[index(page)].load(Ordering::SeqCst) != 0 {
                return (before(page), claim(PageRun::one(page)));
            }
        }
        (claim(run), None)
    }

    fn enter(&self, page: Gfn, from: State) -> bool {
        let in_transit = State::InTransit as u8;
        from != State::InTransit
            && self.states[index(page)]
                .compare_exchange(from as u8, in_transit, Ordering::SeqCst, Ordering::Acquire)
                .is_ok()
    }

    /// Ends a claim: all its pages are `to` from now on. Wake their waiters afterwards.
    ///
    /// # Panics
    /// When the step is not one that a page can take: our bug.
    pub(crate) fn settle(&self, claim: Claim, to: State) {
        assert!(claim.from().may_become(to), "{claim:?} cannot become {to:?}");
        for page in claim.run().pages() {
            let before = self.states[index(page)].swap(to as u8, Ordering::SeqCst);
            assert_eq!(
                State::from_byte(before),
                State::InTransit,
                "{page:?} was settled twice"
            );
        }
        claim.end();
    }

    /// One step that needs no owner because the page stays where it is: zero or private as the last look found it,
    /// shared to broken. `false` when the page was something else meanwhile.
    pub(crate) fn relabel(&self, page: Gfn, from: State, to: State) -> bool {
        debug_assert!(matches!(
            (from, to),
            (State::Private, State::Zero) | (State::Zero, State::Private) | (State::Shared, State::Broken)
        ));
        self.state(page) == from
            && self.states[index(page)]
                .compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::Acquire)
                .is_ok()
    }

    /// Makes holes into pages in transit: the first step of adopting memory.
    pub(crate) fn found(&self, run: PageRun) -> Claim {
        for page in run.pages() {
            self.states[index(page)].store(State::InTransit as u8, Ordering::SeqCst);
        }
        Claim::new(run, State::Huge)
    }

    /// Number of pages in each state, by `State as usize`.
    pub(crate) fn census(&self) -> [u64; STATES] {
        let mut counts = [0; STATES];
        for state in &self.states {
            counts[usize::from(state.load(Ordering::Relaxed))] += 1;
        }
        counts
    }

    /// Where the content of `page` is, which is one of the claimed ones.
    pub(crate) fn location<L: Location>(&self, claim: &Claim, page: Gfn) -> L {
        debug_assert!(
            L::belongs_to(claim.from()) && claim.run().contains(page),
            "{claim:?}"
        );
        self.last_location(page)
    }

    /// The same for a page that is not claimed; `None` when its state is not one with such a location.
    pub(crate) fn located<L: Location>(&self, page: Gfn) -> Option<L> {
        L::belongs_to(self.state(page)).then(|| self.last_location(page))
    }

    /// Where the content of `page` was when it last had such a location. For callers that know that it has one, though
    /// another thread may own the page for a moment.
    pub(crate) fn last_location<L: Location>(&self, page: Gfn) -> L {
        L::from_bits(self.locations[index(page)].load(Ordering::Acquire))
    }

    /// Says where the content of `page` is, which is one of the claimed ones. Settle it as a state with such a location.
    pub(crate) fn set_location<L: Location>(&self, claim: &Claim, page: Gfn, location: L) {
        debug_assert!(claim.run().contains(page), "{claim:?}");
        self.locations[index(page)].store(location.bits(), Ordering::Release);
    }

    /// Whether any of `marks` is on the page.
    pub(crate) fn is_marked(&self, page: Gfn, marks: Marks) -> bool {
        self.marks[index(page)].load(Ordering::Relaxed) & marks.bits() != 0
    }

    /// Puts marks on.
    pub(crate) fn add_marks(&self, page: Gfn, marks: Marks) {
        self.marks[index(page)].fetch_or(marks.bits(), Ordering::Relaxed);
    }

    /// Takes marks off; whether any was on.
    pub(crate) fn clear_marks(&self, page: Gfn, marks: Marks) -> bool {
        // Most pages have none, and a plain load is much cheaper than an exchange.
        self.is_marked(page, marks)
            && self.marks[index(page)].fetch_and(!marks.bits(), Ordering::Relaxed) & marks.bits() != 0
    }

    /// Pages written since they were last hashed, 64 to a word.
    pub(crate) fn pending_word(&self, word: usize) -> u64 {
        self.pending[word].load(Ordering::Relaxed)
    }

    /// Marks a page as written since it was last hashed, or not.
    pub(crate) fn set_pending(&self, page: Gfn, pending: bool) {
        // Most pages are what they are to be, and a plain load is much cheaper than an exchange.
        if self.is_pending(page) == pending {
            return;
        }
        let bit = 1 << (page.get() % 64);
        let word = &self.pending[index(page) / 64];
        match pending {
            true => word.fetch_or(bit, Ordering::Relaxed),
            false => word.fetch_and(!bit, Ordering::Relaxed),
        };
    }

    /// Whether the page was written since it was last hashed.
    pub(crate) fn is_pending(&self, page: Gfn) -> bool {
        self.pending_word(index(page) / 64) & (1 << (page.get() % 64)) != 0
    }

    /// Counts one more I/O in flight on the page. `false` when 255 are already.
    pub(crate) fn pin(&self, page: Gfn) -> bool {
        let pins = &self.pins[index(page)];
        pins.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_add(1))
            .is_ok()
    }

    /// Whether some thread owns the page. `false` after a pin: a thread that owns it from now on sees the pin.
    pub(crate) fn is_held(&self, page: Gfn) -> bool {
        // Sequentially consistent, like the owner's look at the pins: with less, each could miss the other.
        self.states[index(page)].load(Ordering::SeqCst) == State::InTransit as u8
    }

    /// The state of the page, unless some thread owns it that settles it without waiting for a disk. A thread that owns it
    /// from now on sees what the caller did before.
    pub(crate) fn settled_state(&self, page: Gfn) -> Option<State> {
        // Sequentially consistent, like an owner's look at the gate: with less, each could miss the other.
        let state = State::from_byte(self.states[index(page)].load(Ordering::SeqCst));
        // In this order: a page that the handler leaves to the swap thread is marked while it is held.
        (state != State::InTransit || self.is_marked(page, Marks::READING)).then_some(state)
    }

    /// Whether a thread has the page that waits for its disk.
    pub(crate) fn is_being_read(&self, page: Gfn) -> bool {
        self.is_held(page) && self.is_marked(page, Marks::READING)
    }

    /// One I/O less in flight.
    pub(crate) fn unpin(&self, page: Gfn) {
        let before = self.pins[index(page)].fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "{page:?} was not pinned");
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

fn index(page: Gfn) -> usize {
    page.get() as usize
}
