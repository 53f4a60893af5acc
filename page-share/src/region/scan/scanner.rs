//! The scanner: goes over the memory pass by pass, talks to the manager (`exchange`), and merges the longest runs first.
//!
//! It holds the engine lock only for one short piece of work at a time, and never while it talks to the manager.

mod exchange;
mod planning;
mod speculation;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::hash::{DomainKey, PageHasher};
use crate::page::{Gfn, Page, PoolGeneration};
use crate::port::{Answer, Offer, Port, Publication, REPORT_BATCH, Report};
use crate::region::engine::{Engine, lock};
use crate::region::guest::Guest;
use crate::region::kernel::Mappings;
use crate::region::merge::{MergeRun, PoolIndex};
use crate::region::random::Random;
use crate::region::run::{PageRun, runs_of};
use crate::region::scan::CHUNK;
use crate::region::scan::backoff::Backoff;
use crate::region::scan::look::{Looker, Scanned};
use crate::region::table::{Marks, State};

#[cfg(test)]
pub(crate) use exchange::held_slots;

/// Time after which pages are sent again for which the pool had no room: a manager may give it more every second.
const FULL: Duration = Duration::from_secs(2);

/// What one step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// Pages scanned or merged.
    pub pages: u32,
    /// The step finished a pass: everything was looked at and merged as far as the mappings allow.
    pub pass_finished: bool,
}

/// Which chunks a step looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunks {
    /// All of them.
    All,
    /// Those that do not rest.
    Due,
}

/// A page and the pool page that it probably equals; holds one reference to that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    page: Gfn,
    index: PoolIndex,
}

/// Where a pass is.
#[derive(Default)]
struct Pass {
    /// It has begun.
    begun: bool,
    /// Mappings are plentiful: what can be merged is merged while it is still in the caches, longest first only
    /// within a chunk. Otherwise the longest runs of the whole pass come first.
    plenty: bool,
    /// Chunks still to scan, the last first.
    chunks: Vec<PageRun>,
    /// Runs still to merge, the best last.
    runs: Vec<MergeRun>,
}

/// The scanner of one region.
pub(crate) struct Scanner {
    guest: Arc<Guest>,
    looker: Looker,
    port: Option<Box<dyn Port>>,
    /// The manager did not answer and has not come back yet.
    gone: bool,
    hasher: PageHasher,
    pass: Pass,
    backoff: Backoff,
    /// When the last step began.
    stepped: Instant,
    scanned: Scanned,
    candidates: Vec<Candidate>,
    /// Pages whose bytes the manager has asked for.
    wanted: Vec<Report>,
    /// Runs to look at before anything else, and whether they were armed already.
    prioritized: VecDeque<PageRun>,
    armed: VecDeque<PageRun>,
    /// Some pages are marked as left out for lack of mappings. Their references went back, so that the pool does not
    /// keep copies that no page maps; they are reported anew when there is room again.
    some_left_out: bool,
    /// When the pool had no room for a page first, of those that are marked as left out for that.
    refused: Option<Instant>,
    /// Passes since runs had to be left out for lack of mappings: the longer, the shorter runs get their turn.
    patience: u32,
    random: Random,
    answers: Vec<Answer>,
    results: Vec<Publication>,
    offers: Vec<Offer>,
    bytes: Vec<Page>,
}

impl Scanner {
    /// A scanner without a manager: it finds zero pages and brings broken ones home.
    pub(crate) fn new(guest: Arc<Guest>) -> std::io::Result<Self> {
        Ok(Self {
            looker: Looker::new(guest.clone()),
            guest,
            port: None,
            gone: false,
            hasher: PageHasher::new(&DomainKey::random()?),
            pass: Pass::default(),
            backoff: Backoff::default(),
            stepped: Instant::now(),
            scanned: Scanned::default(),
            candidates: Vec::new(),
            wanted: Vec::new(),
            some_left_out: false,
            refused: None,
            prioritized: VecDeque::new(),
            armed: VecDeque::new(),
            patience: 0,
            random: Random::new()?,
            answers: Vec::new(),
            results: Vec::new(),
            offers: Vec::new(),
            bytes: Vec::new(),
        })
    }

    /// Whether there is a manager that answers.
    pub(super) fn is_connected(&self) -> bool {
        self.port.is_some() && !self.gone
    }

    /// The pool that the manager works with.
    pub(super) fn generation(&self) -> Option<PoolGeneration> {
        Some(self.port.as_ref()?.session().generation)
    }

    /// The session with the manager.
    #[cfg(test)]
    pub(crate) fn session(&self) -> Option<&crate::port::Session> {
        Some(self.port.as_ref()?.session())
    }

    /// Looks at `run` soon and, if it is quiet, reports it: without waiting for the next pass.
    pub(crate) fn prioritize(&mut self, run: PageRun) {
        self.prioritized.push_back(run);
    }

    /// Does up to `pages` pages' worth of work.
    pub(crate) fn step(&mut self, engine: &Mutex<Engine>, pages: u32, chunks: Chunks) -> Step {
        let mut step = Step::default();
        self.backoff.step(self.stepped.elapsed());
        self.stepped = Instant::now();
        self.reconnect_if_gone(engine);
        step.pages += self.look_at_priorities(engine, pages);
        while step.pages < pages && !step.pass_finished {
            if !self.pass.runs.is_empty() {
                step.pages += self.merge_next(engine, pages - step.pages);
            } else if !self.pass.begun {
                self.begin_pass(engine);
            } else if let Some(chunk) = self.pass.chunks.pop() {
                step.pages += self.scan_next(engine, chunk, chunks);
            } else {
                step.pass_finished = true;
            }
        }
        if step.pass_finished {
            self.pass = Pass::default();
            self.forget_old_pools(lock(engine).merger());
            self.guest.counters().passes.add(1);
        }
        step
    }

    fn begin_pass(&mut self, engine: &Mutex<Engine>) {
        let random = self.random.draw();
        let engine = lock(engine);
        self.looker.look_for_host_swap();
        self.pass.begun = true;
        self.pass.chunks = plan_pass(&self.guest, random);
        // Typical guests need one mapping for four merged pages; twice that, in every region, must fit.
        let mappings = Mappings::of_process();
        let private = self.guest.table().census()[State::Private as usize] as i64;
        self.pass.plenty = private / 2 * mappings.regions() < mappings.room();
        let has_mappings = self.some_left_out && mappings.room() > mappings.limit() / 8;
        if has_mappings || self.refused.is_some_and(|since| since.elapsed() >= FULL) {
            self.report_left_out();
        }
        drop(engine);
    }

    /// What was left out is to be reported anew.
    fn report_left_out(&mut self) {
        (self.some_left_out, self.refused) = (false, None);
        self.backoff.end();
        let table = self.guest.table();
        for page in table.all().pages() {
            if table.clear_marks(page, Marks::LEFT_OUT) && table.state(page) == State::Private {
                table.set_pending(page, true);
            }
        }
    }

    fn scan_next(&mut self, engine: &Mutex<Engine>, chunk: PageRun, chunks: Chunks) -> u32 {
        let look = self.part_to_look_at(engine, chunk, chunks);
        if let Some(run) = look {
            self.look_at(engine, run);
        }
        let last = self.pass.chunks.is_empty();
        if last || self.pass.plenty {
            self.flush(engine);
        }
        if let Some(run) = look {
            let random = self.random.draw();
            self.backoff.looked(run.first, self.scanned.looked, random);
        }
        if last {
            self.fetch_offers(engine);
        }
        if last || (self.pass.plenty && !self.candidates.is_empty()) {
            self.pass.runs = self.plan_merges(engine);
        }
        chunk.count
    }

    /// What of `chunk` is to be looked at now.
    fn part_to_look_at(&self, engine: &Mutex<Engine>, chunk: PageRun, chunks: Chunks) -> Option<PageRun> {
        let mut engine = lock(engine);
        // Pages of earlier pools come home by being looked at.
        if chunks == Chunks::All || engine.merger().pools().has_old() {
            return Some(chunk);
        }
        let table = self.guest.table();
        self.backoff
            .due(chunk, |page| table.state(page) == State::Private)
    }

    /// Scans one chunk; merges its zeros and brings its long-quiet broken pages home.
    fn look_at(&mut self, engine: &Mutex<Engine>, chunk: PageRun) {
        let mut scanned = std::mem::take(&mut self.scanned);
        {
            let mut engine = lock(engine);
            let looked = self
                .looker
                .look(chunk, engine.merger(), &self.hasher, &mut scanned);
            if let Err(error) = looked {
                log::warn!("{chunk:?} cannot be scanned: {error}");
            }
        }
        if self.pass.plenty {
            self.speculate(engine, &mut scanned);
        }
        {
            let mut engine = lock(engine);
            let (quiet, merger) = (std::mem::take(&mut scanned.quiet), engine.merger());
            self.looker.sketch(&quiet, &self.hasher, &mut scanned);
            for run in runs_of(scanned.zeros.drain(..)) {
                run.pages().for_each(|page| self.backoff.gain(page));
                merger.merge_zeros(run);
            }
            merger.mover().clear();
            let mut home = runs_of(scanned.rehome_candidates.drain(..));
            home.sort_by_key(|run| std::cmp::Reverse(run.count));
            for run in home {
                if Mappings::of_process().room() > 2 {
                    merger.rehome(run);
                }
            }
            self.migrate(merger, chunk);
        }
        self.scanned = scanned;
        if self.scanned.reports.len() + CHUNK as usize > REPORT_BATCH {
            self.flush(engine);
        }
    }

    /// What is found equal here is merged in the same step: another guest has read the same block of the same disk, and
    /// neither waits for the end of a pass.
    fn look_at_priorities(&mut self, engine: &Mutex<Engine>, pages: u32) -> u32 {
        if self.armed.is_empty() && self.prioritized.is_empty() {
            return 0;
        }
        // What the pass has found so far is not their merit.
        self.flush(engine);
        let known = self.candidates.len();
        let mut done = 0;
        // Those armed at an earlier step have had time to show whether they are quiet.
        for run in std::mem::take(&mut self.armed) {
            done += self.look_at_parts(engine, run);
        }
        while done < pages {
            let Some(run) = self.prioritized.pop_front() else {
                break;
            };
            done += self.look_at_parts(engine, run);
            self.armed.push_back(run);
        }
        self.flush(engine);
        let counters = self.guest.counters();
        counters.pages_hinted.add(u64::from(done));
        counters
            .shared_by_hint
            .add((self.candidates.len() - known) as u64);
        // Where mappings are scarce, the pass has to weigh these against all others.
        let free = self.pass.runs.is_empty() && (self.pass.plenty || !self.pass.begun);
        if free && self.candidates.len() > known {
            self.pass.runs = self.plan_merges(engine);
        }
        done
    }

    fn look_at_parts(&mut self, engine: &Mutex<Engine>, run: PageRun) -> u32 {
        let parts: Vec<PageRun> = self.guest.layout().clip(run).collect();
        let mut pages = 0;
        for chunk in parts.into_iter().flat_map(|part| part.pieces(CHUNK)) {
            self.look_at(engine, chunk);
            pages += chunk.count;
        }
        pages
    }

    fn sketch(&self, engine: &Mutex<Engine>, quiet: &[Gfn], out: &mut Scanned) {
        let _engine = lock(engine);
        self.looker.sketch(quiet, &self.hasher, out);
    }
}

/// The pass's chunks in a random rotation, the first last: neighbours are published, and so placed, in order.
fn plan_pass(guest: &Guest, random: u64) -> Vec<PageRun> {
    let runs = guest.layout().runs();
    let mut chunks: Vec<PageRun> = runs.flat_map(|run| run.pieces(CHUNK)).collect();
    let start = (random % chunks.len().max(1) as u64) as usize;
    chunks.rotate_left(start);
    chunks.reverse();
    chunks
}

impl std::fmt::Debug for Scanner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scanner")
            .field("candidates", &self.candidates.len())
            .finish_non_exhaustive()
    }
}
