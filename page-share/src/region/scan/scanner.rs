//! The scanner: goes over the memory pass by pass, talks to the manager (`exchange`), and merges the longest runs first.
//!
//! It holds the engine lock only for one short piece of work at a time, and never while it talks to the manager.

mod exchange;
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
use crate::region::merge::{MergeRun, Merger, PoolIndex};
use crate::region::random::Random;
use crate::region::run::{PageRun, runs_of};
use crate::region::scan::backoff::Backoff;
use crate::region::scan::look::{CHUNK, Looker, Scanned};
use crate::region::table::{Marks, State};

#[cfg(test)]
pub(crate) use exchange::held_slots;

/// Pages of earlier pools brought home for each chunk scanned.
const MIGRATE: usize = 128;

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
    /// MergeRunes still to merge, the best last.
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
    armed_first: VecDeque<PageRun>,
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
            armed_first: VecDeque::new(),
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
        if self.armed_first.is_empty() && self.prioritized.is_empty() {
            return 0;
        }
        // What the pass has found so far is not their merit.
        self.flush(engine);
        let known = self.candidates.len();
        let mut done = 0;
        // Those armed at an earlier step have had time to show whether they are quiet.
        let armed = self.armed_first.len();
        for _ in 0..armed {
            let Some(run) = self.armed_first.pop_front() else {
                break;
            };
            done += self.look_at_parts(engine, run);
        }
        while done < pages {
            let Some(run) = self.prioritized.pop_front() else {
                break;
            };
            done += self.look_at_parts(engine, run);
            self.armed_first.push_back(run);
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

    /// Orders the candidates into runs, the longest last, as far as the mappings allow; the rest waits.
    fn plan_merges(&mut self, engine: &Mutex<Engine>) -> Vec<MergeRun> {
        let mut engine = lock(engine);
        let (merger, table) = (engine.merger(), self.guest.table());
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.sort_unstable();
        let mut runs: Vec<MergeRun> = Vec::new();
        let mut last = None;
        for Candidate { page, index } in candidates {
            // A page that was granted two references keeps one; one that cannot be merged any more keeps none.
            let stale = !table.state(page).is_private() || table.is_pending(page);
            if stale || last == Some(page) {
                merger.return_references([index]);
                continue;
            }
            last = Some(page);
            match runs.last_mut() {
                Some(run) if run.continues(page, index) => run.push(index),
                _ => runs.push(MergeRun::new(page, index)),
            }
        }
        self.fit(merger, runs)
    }

    /// While mappings are scarce, leaves runs that are worth little for a later pass, so that every region's best ones
    /// come first. Where there are enough, runs that lie side by side are merged in one go.
    fn fit(&mut self, merger: &Merger, mut runs: Vec<MergeRun>) -> Vec<MergeRun> {
        let mappings = Mappings::of_process();
        if !runs.is_empty() {
            mappings.recount_if_stale();
        }
        let need: i64 = runs.iter().map(|run| run.cost(merger).max(0)).sum();
        if need * mappings.regions() < mappings.room() {
            self.patience = 0;
            return MergeRun::join(runs);
        }
        runs.sort_by_cached_key(|run| (run.worth(merger), run.count()));
        let least = [16, 8, 4, 2, 1][self.patience.min(4) as usize];
        self.patience += 1;
        let split = runs.partition_point(|run| run.worth(merger) < least);
        for run in runs.drain(..split) {
            let candidates = run.pages().map(|(page, index)| Candidate { page, index });
            self.candidates.extend(candidates);
        }
        runs
    }

    fn merge_next(&mut self, engine: &Mutex<Engine>, pages: u32) -> u32 {
        let mut done = 0;
        while done < pages {
            let Some(run) = self.pass.runs.pop() else {
                break;
            };
            done += run.count();
            let mut engine = lock(engine);
            let merger = engine.merger();
            if let Some(next) = self.pass.runs.last() {
                next.prefetch(&self.guest, merger);
            }
            let cost = run.cost(merger);
            // The last few are for runs that are worth it.
            let mappings = Mappings::of_process();
            let floor = if run.count() >= 16 {
                0
            } else {
                mappings.limit() / 64
            };
            if cost > 0 && mappings.room() - cost <= floor {
                self.some_left_out = true;
                run.leave_out(&self.guest, merger);
                continue;
            }
            if run.merge(merger) {
                mappings.recount();
            }
        }
        lock(engine).merger().mover().clear();
        self.return_references(engine);
        done
    }

    fn sketch(&self, engine: &Mutex<Engine>, quiet: &[Gfn], out: &mut Scanned) {
        let _engine = lock(engine);
        self.looker.sketch(quiet, &self.hasher, out);
    }

    /// Lets go of pools whose managers are gone once none of their pages is mapped: until every process has, the whole
    /// old pool stays in memory.
    fn forget_old_pools(&self, merger: &mut Merger) {
        let (table, pools) = (self.guest.table(), merger.pools());
        let in_use = |page| table.state(page) == State::InTransit || self.is_of_old_pool(merger, page);
        if pools.has_old() && !table.all().pages().any(in_use) {
            merger.forget_old_pools();
        }
    }

    /// Brings home some pages of a pool whose manager is gone, so that they can move to the present one.
    fn migrate(&self, merger: &mut Merger, chunk: PageRun) {
        if !merger.pools().has_old() {
            return;
        }
        let old = chunk.pages().filter(|&page| self.is_of_old_pool(merger, page));
        for run in runs_of(old.take(MIGRATE)) {
            merger.rehome(run);
        }
    }

    fn is_of_old_pool(&self, merger: &Merger, page: Gfn) -> bool {
        let index = self.guest.table().located(page);
        index.is_some_and(|index| !merger.pools().is_newest(index))
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
