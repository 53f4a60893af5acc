//! The scanner: goes over the memory pass by pass, talks to the manager (`exchange`), and merges the longest runs first.
//!
//! It holds the engine lock only for one short piece of work at a time, and never while it talks to the manager.

mod exchange;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::hash::{DomainKey, PageHasher};
use crate::page::{Page, PoolGeneration};
use crate::port::{Answer, Offer, Port, Publication, REPORT_BATCH, Report};
use crate::region::engine::Engine;
use crate::region::kernel::mappings::Mappings;
use crate::region::merge::merge_run::Stretch;
use crate::region::random::Random;
use crate::region::run::{PageRun, runs_of};
use crate::region::scan::backoff::Rests;
use crate::region::scan::look::{CHUNK, Scanned};
use crate::region::table::state::{State, mark};

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

/// A page and the pool place that it probably equals; holds one reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    pub(super) page: u32,
    pub(super) place: u32,
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
    /// Stretches still to merge, the best last.
    stretches: Vec<Stretch>,
}

/// The scanner of one region.
pub(crate) struct Scanner {
    port: Option<Box<dyn Port>>,
    /// The manager did not answer and has not come back yet.
    gone: bool,
    pub(super) hasher: PageHasher,
    pass: Pass,
    rests: Rests,
    /// When the last step began.
    stepped: Instant,
    scanned: Scanned,
    pub(super) candidates: Vec<Candidate>,
    /// Pages whose bytes the manager has asked for.
    wanted: Vec<Report>,
    /// Runs to look at before anything else, and whether they were armed already.
    hints: VecDeque<PageRun>,
    armed_hints: VecDeque<PageRun>,
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
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            port: None,
            gone: false,
            hasher: PageHasher::new(&DomainKey::random()?),
            pass: Pass::default(),
            rests: Rests::default(),
            stepped: Instant::now(),
            scanned: Scanned::default(),
            candidates: Vec::new(),
            wanted: Vec::new(),
            some_left_out: false,
            refused: None,
            hints: VecDeque::new(),
            armed_hints: VecDeque::new(),
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
    pub(crate) fn hint(&mut self, run: PageRun) {
        self.hints.push_back(run);
    }

    /// Does up to `pages` pages' worth of work.
    pub(crate) fn step(&mut self, engine: &Mutex<Engine>, pages: u32, chunks: Chunks) -> Step {
        let mut step = Step::default();
        self.rests.step(self.stepped.elapsed());
        self.stepped = Instant::now();
        self.reconnect_if_gone(engine);
        step.pages += self.look_at_hints(engine, pages);
        while step.pages < pages && !step.pass_finished {
            if !self.pass.stretches.is_empty() {
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
            let mut engine = lock(engine);
            forget_old_pools(&mut engine);
            engine.guest.counters.passes.add(1);
        }
        step
    }

    fn begin_pass(&mut self, engine: &Mutex<Engine>) {
        let random = self.random.draw();
        let mut engine = lock(engine);
        engine.look_for_host_swap();
        self.pass.begun = true;
        self.pass.chunks = plan_pass(&engine, random);
        // Typical guests need one mapping for four merged pages; twice that, in every region, must fit.
        let mappings = Mappings::of_process();
        let private = engine.guest.table.census()[State::Private as usize] as i64;
        self.pass.plenty = private / 2 * mappings.regions() < mappings.room();
        let has_mappings = self.some_left_out && mappings.room() > mappings.limit() / 8;
        if has_mappings || self.refused.is_some_and(|since| since.elapsed() >= FULL) {
            self.report_left_out(&engine);
        }
    }

    /// What was left out is to be reported anew.
    fn report_left_out(&mut self, engine: &Engine) {
        (self.some_left_out, self.refused) = (false, None);
        self.rests.end();
        let table = &engine.guest.table;
        for page in 0..table.pages() {
            if table.clear_marks(page, mark::LEFT_OUT) && table.state(page) == State::Private {
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
            self.rests.looked(run.first.get(), self.scanned.looked, random);
        }
        if last {
            self.fetch_offers(engine);
        }
        if last || (self.pass.plenty && !self.candidates.is_empty()) {
            self.pass.stretches = self.plan_merges(engine);
        }
        chunk.count
    }

    /// What of `chunk` is to be looked at now.
    fn part_to_look_at(&self, engine: &Mutex<Engine>, chunk: PageRun, chunks: Chunks) -> Option<PageRun> {
        let engine = lock(engine);
        // Pages of earlier pools come home by being looked at.
        if chunks == Chunks::All || engine.pools.has_old() {
            return Some(chunk);
        }
        let table = &engine.guest.table;
        self.rests.due(chunk, |page| table.state(page) == State::Private)
    }

    /// Scans one chunk; merges its zeros and brings its long-quiet broken pages home.
    fn look_at(&mut self, engine: &Mutex<Engine>, chunk: PageRun) {
        let mut scanned = std::mem::take(&mut self.scanned);
        {
            let mut engine = lock(engine);
            if let Err(error) = engine.scan(chunk, &self.hasher, &mut scanned) {
                log::warn!("{chunk:?} cannot be scanned: {error}");
            }
        }
        if self.pass.plenty {
            self.guess(engine, &mut scanned);
        }
        {
            let mut engine = lock(engine);
            let quiet = std::mem::take(&mut scanned.quiet);
            engine.sketch(&quiet, &self.hasher, &mut scanned);
            for run in runs_of(scanned.zeros.drain(..)) {
                run.numbers().for_each(|page| self.rests.gain(page));
                engine.merge_zeros(run);
            }
            engine.clear_staging();
            let mut home = runs_of(scanned.homecomers.drain(..));
            home.sort_by_key(|run| std::cmp::Reverse(run.count));
            for run in home {
                if Mappings::of_process().room() > 2 {
                    engine.rehome(run);
                }
            }
            migrate(&mut engine, chunk);
        }
        self.scanned = scanned;
        if self.scanned.reports.len() + CHUNK as usize > REPORT_BATCH {
            self.flush(engine);
        }
    }

    /// What is found equal here is merged in the same step: another guest has read the same block of the same disk, and
    /// neither waits for the end of a pass.
    fn look_at_hints(&mut self, engine: &Mutex<Engine>, pages: u32) -> u32 {
        if self.armed_hints.is_empty() && self.hints.is_empty() {
            return 0;
        }
        // What the pass has found so far is not the hints' merit.
        self.flush(engine);
        let known = self.candidates.len();
        let mut done = 0;
        // Those armed at an earlier step have had time to show whether they are quiet.
        let armed = self.armed_hints.len();
        for _ in 0..armed {
            let Some(run) = self.armed_hints.pop_front() else {
                break;
            };
            done += self.look_at_parts(engine, run);
        }
        while done < pages {
            let Some(run) = self.hints.pop_front() else { break };
            done += self.look_at_parts(engine, run);
            self.armed_hints.push_back(run);
        }
        self.flush(engine);
        {
            let counters = &lock(engine).guest.counters;
            counters.pages_hinted.add(u64::from(done));
            counters
                .shared_by_hint
                .add((self.candidates.len() - known) as u64);
        }
        // Where mappings are scarce, the pass has to weigh these against all others.
        let free = self.pass.stretches.is_empty() && (self.pass.plenty || !self.pass.begun);
        if free && self.candidates.len() > known {
            self.pass.stretches = self.plan_merges(engine);
        }
        done
    }

    fn look_at_parts(&mut self, engine: &Mutex<Engine>, run: PageRun) -> u32 {
        let parts: Vec<PageRun> = lock(engine).guest.layout.clip(run).collect();
        let mut pages = 0;
        for chunk in parts.into_iter().flat_map(|part| part.pieces(CHUNK)) {
            self.look_at(engine, chunk);
            pages += chunk.count;
        }
        pages
    }

    /// Orders the candidates into runs, the longest last, as far as the mappings allow; the rest waits.
    fn plan_merges(&mut self, engine: &Mutex<Engine>) -> Vec<Stretch> {
        let mut engine = lock(engine);
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.sort_unstable();
        let mut runs: Vec<Stretch> = Vec::new();
        let mut last = None;
        for Candidate { page, place } in candidates {
            // A page that was granted two references keeps one; one that cannot be merged any more keeps none.
            let stale = !engine.guest.table.state(page).is_private() || engine.guest.table.is_pending(page);
            if stale || last == Some(page) {
                engine.returns.push(place);
                continue;
            }
            last = Some(page);
            match runs.last_mut() {
                Some(run) if run.continues(page, place) => run.push(place),
                _ => runs.push(Stretch::new(page, place)),
            }
        }
        self.fit(&engine, runs)
    }

    /// While mappings are scarce, leaves runs that are worth little for a later pass, so that every region's best ones
    /// come first. Where there are enough, runs that lie side by side are merged in one go.
    fn fit(&mut self, engine: &Engine, mut runs: Vec<Stretch>) -> Vec<Stretch> {
        let mappings = Mappings::of_process();
        if !runs.is_empty() {
            mappings.recount_if_stale();
        }
        let need: i64 = runs.iter().map(|run| run.cost(engine).max(0)).sum();
        if need * mappings.regions() < mappings.room() {
            self.patience = 0;
            return Stretch::join(runs);
        }
        runs.sort_by_cached_key(|run| (run.worth(engine), run.count()));
        let least = [16, 8, 4, 2, 1][self.patience.min(4) as usize];
        self.patience += 1;
        let split = runs.partition_point(|run| run.worth(engine) < least);
        for run in runs.drain(..split) {
            let candidates = run.pages().map(|(page, place)| Candidate { page, place });
            self.candidates.extend(candidates);
        }
        runs
    }

    fn merge_next(&mut self, engine: &Mutex<Engine>, pages: u32) -> u32 {
        let mut done = 0;
        while done < pages {
            let Some(stretch) = self.pass.stretches.pop() else {
                break;
            };
            done += stretch.count();
            let mut locked = lock(engine);
            if let Some(next) = self.pass.stretches.last() {
                next.prefetch(&locked);
            }
            let cost = stretch.cost(&locked);
            // The last few are for runs that are worth it.
            let mappings = Mappings::of_process();
            let floor = if stretch.count() >= 16 {
                0
            } else {
                mappings.limit() / 64
            };
            if cost > 0 && mappings.room() - cost <= floor {
                self.some_left_out = true;
                stretch.leave_out(&mut locked);
                continue;
            }
            let merged = stretch.merge(&mut locked);
            if merged.out_of_mappings {
                mappings.recount();
            }
        }
        lock(engine).clear_staging();
        self.return_references(engine);
        done
    }
}

/// The pass's chunks in a random rotation, the first last: neighbours are published, and so placed, in order.
fn plan_pass(engine: &Engine, random: u64) -> Vec<PageRun> {
    let mut chunks: Vec<PageRun> = engine
        .guest
        .layout
        .runs()
        .flat_map(|run| run.pieces(CHUNK))
        .collect();
    let start = (random % chunks.len().max(1) as u64) as usize;
    chunks.rotate_left(start);
    chunks.reverse();
    chunks
}

fn is_mapped(engine: &Engine, page: u32) -> bool {
    matches!(engine.guest.table.state(page), State::Shared | State::Broken)
}

/// Lets go of pools whose managers are gone once none of their pages is mapped: until every process has, the whole
/// old pool stays in memory.
fn forget_old_pools(engine: &mut Engine) {
    if !engine.pools.has_old() {
        return;
    }
    let table = &engine.guest.table;
    let in_use = |page| {
        let is_old = || is_mapped(engine, page) && !engine.pools.is_newest(table.detail(page));
        table.state(page) == State::InTransit || is_old()
    };
    if !(0..table.pages()).any(in_use) {
        engine.pools.forget_old();
    }
}

/// Brings home some pages of a pool whose manager is gone, so that they can move to the present one.
fn migrate(engine: &mut Engine, chunk: PageRun) {
    if !engine.pools.has_old() {
        return;
    }
    let table = &engine.guest.table;
    let old = chunk
        .numbers()
        .filter(|&page| is_mapped(engine, page) && !engine.pools.is_newest(table.detail(page)));
    for run in runs_of(old.take(MIGRATE)) {
        engine.rehome(run);
    }
}

/// The engine, also after a thread that held it has died: the process aborts on panics where it matters.
pub(crate) fn lock(engine: &Mutex<Engine>) -> MutexGuard<'_, Engine> {
    engine.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Scanner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scanner")
            .field("candidates", &self.candidates.len())
            .finish_non_exhaustive()
    }
}
