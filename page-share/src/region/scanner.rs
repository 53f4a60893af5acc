//! The scanner: goes over the memory pass by pass, talks to the manager, and merges the longest runs first.
//!
//! It holds the engine lock only for one short piece of work at a time, and never while it talks to the manager.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::hash::{DomainKey, PageHasher};
use crate::page::{Gfn, PAGE_SIZE, Page, PoolGeneration, Slot};
use crate::port::{
    Answer, Offer, PUBLISH_BATCH, Port, PortError, Publication, REPORT_BATCH, Reconnected, Refusal, Report,
};
use crate::region::engine::Engine;
use crate::region::mappings::Mappings;
use crate::region::rest::Rests;
use crate::region::run::{PageRun, runs_of};
use crate::region::scan::{CHUNK, Scanned};
use crate::region::state::{State, mark};
use crate::region::stretch::Stretch;

/// Pages published in one call. Fewer than the port allows: the copies stay in a core's nearest caches while they are
/// hashed and written.
const PORTION: usize = 32;
const _: () = assert!(PORTION <= PUBLISH_BATCH);

/// Pages of earlier pools brought home for each chunk scanned.
const MIGRATE: usize = 128;

/// What one step did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
    scanned: Scanned,
    pub(super) candidates: Vec<Candidate>,
    /// Pages whose bytes the manager has asked for.
    wanted: Vec<Report>,
    /// Runs to look at before anything else, and whether they were armed already.
    hints: VecDeque<PageRun>,
    armed_hints: VecDeque<PageRun>,
    /// Some pages are marked as left out for want of mappings. Their references went back, so that the pool does not
    /// keep copies that nobody maps; they are reported anew when there is room again.
    some_left_out: bool,
    /// Passes since runs had to be left out for want of mappings: the longer, the shorter runs get their turn.
    patience: u32,
    random: u64,
    answers: Vec<Answer>,
    results: Vec<Publication>,
    offers: Vec<Offer>,
    bytes: Vec<Page>,
}

impl Scanner {
    /// A scanner without a manager: it finds zero pages and brings broken ones home.
    pub(crate) fn new() -> std::io::Result<Self> {
        let mut seed = [0; 8];
        crate::hash::fill_random(&mut seed)?;
        Ok(Self {
            port: None,
            gone: false,
            hasher: PageHasher::new(&DomainKey::random()?),
            pass: Pass::default(),
            rests: Rests::default(),
            scanned: Scanned::default(),
            candidates: Vec::new(),
            wanted: Vec::new(),
            some_left_out: false,
            hints: VecDeque::new(),
            armed_hints: VecDeque::new(),
            patience: 0,
            random: u64::from_le_bytes(seed) | 1,
            answers: Vec::new(),
            results: Vec::new(),
            offers: Vec::new(),
            bytes: Vec::new(),
        })
    }

    /// A random number (xorshift64*), good enough to choose where to look.
    pub(crate) fn random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Joins a sharing domain.
    pub(crate) fn connect(&mut self, engine: &Mutex<Engine>, port: Box<dyn Port>) -> std::io::Result<()> {
        self.enter(engine, port.as_ref())?;
        self.port = Some(port);
        self.gone = false;
        Ok(())
    }

    /// Works with the pool and key of `port`; everything private is to be reported to it.
    fn enter(&mut self, engine: &Mutex<Engine>, port: &dyn Port) -> std::io::Result<()> {
        let mut engine = lock(engine);
        engine.pools.join(port.session())?;
        engine.broken.clear();
        engine.withdrawals.clear();
        self.hasher = PageHasher::new(&port.session().key);
        self.rests.end();
        let table = &engine.guest.table;
        for page in 0..table.pages() {
            table.clear_marks(page, mark::REPORTED | mark::UNSHARABLE);
            if table.state(page) == State::Private {
                table.set_pending(page, true);
            }
        }
        Ok(())
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
        let random = self.random();
        let engine = lock(engine);
        self.pass.begun = true;
        self.pass.chunks = plan_pass(&engine, random);
        // Typical guests need one mapping for four merged pages; twice that, in every region, must fit.
        let mappings = Mappings::of_process();
        let private = engine.guest.table.census()[State::Private as usize] as i64;
        self.pass.plenty = private / 2 * mappings.regions() < mappings.room();
        if self.some_left_out && mappings.room() > mappings.limit() / 8 {
            self.some_left_out = false;
            self.rests.end();
            let table = &engine.guest.table;
            for page in 0..table.pages() {
                if table.clear_marks(page, mark::LEFT_OUT) && table.state(page) == State::Private {
                    table.set_pending(page, true);
                }
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
        self.rests.go_past(chunk.count);
        if let Some(run) = look {
            let random = self.random();
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

    /// What is found equal here is merged in the same step: somebody else has read the same block of the same disk, and
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

    /// Sends what is to be reported, publishes what is asked for, and collects what can be merged.
    fn flush(&mut self, engine: &Mutex<Engine>) {
        let mut reports = std::mem::take(&mut self.scanned.reports);
        self.return_references(engine);
        for batch in reports.chunks(REPORT_BATCH) {
            self.report(engine, batch);
        }
        reports.clear();
        self.scanned.reports = reports;
        let mut wanted = std::mem::take(&mut self.wanted);
        // In page order, so that neighbours come to lie side by side in the pool.
        wanted.sort_unstable_by_key(|report| report.gfn);
        for batch in wanted.chunks(PORTION) {
            self.publish(engine, batch);
        }
        wanted.clear();
        self.wanted = wanted;
    }

    pub(super) fn report(&mut self, engine: &Mutex<Engine>, batch: &[Report]) {
        let mut answers = std::mem::take(&mut self.answers);
        if self
            .call(engine, |port| port.report(batch, &mut answers))
            .is_some()
        {
            let engine = lock(engine);
            engine.guest.counters.pages_reported.add(batch.len() as u64);
            for (report, answer) in batch.iter().zip(&answers) {
                match *answer {
                    Answer::Noted => engine.guest.table.add_marks(report.gfn.get(), mark::REPORTED),
                    Answer::Shared(slot) => self.accept(&engine, report.gfn, slot),
                    Answer::Publish => self.wanted.push(*report),
                }
            }
        }
        self.answers = answers;
    }

    fn publish(&mut self, engine: &Mutex<Engine>, wanted: &[Report]) {
        let mut results = std::mem::take(&mut self.results);
        let mut bytes = std::mem::take(&mut self.bytes);
        let pages = copy_private(&lock(engine), wanted, &mut bytes);
        let sent = self.call(engine, |port| {
            port.publish(&pages, &bytes[..pages.len()], &mut results)
        });
        if sent.is_some() {
            let engine = lock(engine);
            let table = &engine.guest.table;
            engine.guest.counters.pages_published.add(pages.len() as u64);
            for (report, result) in pages.iter().zip(&results) {
                let page = report.gfn.get();
                match *result {
                    Publication::Granted(slot) => self.accept(&engine, report.gfn, slot),
                    Publication::Noted => table.add_marks(page, mark::REPORTED),
                    Publication::Refused(Refusal::Collision) => table.add_marks(page, mark::UNSHARABLE),
                    Publication::Refused(Refusal::SketchMismatch) => table.set_pending(page, true),
                    Publication::Refused(Refusal::PoolFull) => {}
                }
            }
        }
        self.bytes = bytes;
        self.results = results;
    }

    fn fetch_offers(&mut self, engine: &Mutex<Engine>) {
        while self
            .port
            .as_ref()
            .is_some_and(|port| !self.gone && is_ready(port.as_ref()))
        {
            let mut offers = std::mem::take(&mut self.offers);
            let fetched = self.call(engine, |port| port.offers(&mut offers)).is_some();
            {
                let engine = lock(engine);
                for offer in &offers {
                    engine.guest.table.clear_marks(offer.gfn.get(), mark::REPORTED);
                    self.accept(&engine, offer.gfn, offer.slot);
                }
            }
            let empty = offers.is_empty();
            self.offers = offers;
            if empty || !fetched {
                break;
            }
        }
    }

    /// Notes a granted slot for a page. A manager that names nonsense is not followed.
    pub(super) fn accept(&mut self, engine: &Engine, gfn: Gfn, slot: Slot) {
        match engine.pools.place(slot) {
            Some(place) if gfn.get() < engine.guest.table.pages() && engine.pools.has(slot) => {
                self.rests.gain(gfn.get());
                self.candidates.push(Candidate {
                    page: gfn.get(),
                    place,
                });
            }
            _ => log::warn!("the manager granted {slot:?} for {gfn:?}, which cannot be; ignored"),
        }
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

    /// Gives references back whose last mapping is gone, and withdraws hints.
    pub(crate) fn return_references(&mut self, engine: &Mutex<Engine>) {
        let (returns, withdrawals) = {
            let mut engine = lock(engine);
            (
                std::mem::take(&mut engine.returns),
                std::mem::take(&mut engine.withdrawals),
            )
        };
        for batch in withdrawals.chunks(REPORT_BATCH) {
            self.call(engine, |port| port.withdraw(batch));
        }
        if returns.is_empty() || self.port.is_none() {
            return;
        }
        let (generation, slots) = {
            let engine = lock(engine);
            // References to the pool of a manager that is gone died with it.
            let slots = returns
                .iter()
                .filter(|&&place| engine.pools.is_newest(place))
                .map(|&place| engine.pools.slot(place));
            let slots: Vec<_> = slots.collect();
            let Some(&(generation, _)) = slots.first() else {
                return;
            };
            (
                generation,
                slots.into_iter().map(|(_, slot)| slot).collect::<Vec<_>>(),
            )
        };
        for batch in slots.chunks(REPORT_BATCH) {
            self.call(engine, |port| port.release(generation, batch));
        }
    }

    /// One call to the manager; `None` when there is none or it failed.
    pub(super) fn call<T>(
        &mut self,
        engine: &Mutex<Engine>,
        call: impl FnOnce(&mut dyn Port) -> Result<T, PortError>,
    ) -> Option<T> {
        if self.gone {
            return None;
        }
        match call(self.port.as_mut()?.as_mut()) {
            Ok(answer) => Some(answer),
            Err(error) => {
                log::warn!("the manager did not do what it was asked: {error}");
                lock(engine).guest.counters.port_failures.add(1);
                self.gone = matches!(error, PortError::Gone);
                None
            }
        }
    }

    /// Tries to reach a manager again. Everything that was under way is forgotten; what is mapped is named.
    fn reconnect_if_gone(&mut self, engine: &Mutex<Engine>) {
        if !self.gone {
            return;
        }
        let Some(mut port) = self.port.take_if(|port| port.may_reconnect()) else {
            return;
        };
        let held = {
            let mut engine = lock(engine);
            // Nothing but what is mapped is held any more.
            engine.returns.clear();
            held_slots(&engine)
        };
        let reached = port.reconnect(&held);
        if let Ok(reconnected) = reached {
            self.forget_grants();
            self.gone = false;
            if let Err(error) = self.enter(engine, port.as_ref()) {
                log::warn!("the manager's new pool cannot be mapped: {error}");
                self.gone = true;
            }
            if reconnected == Reconnected::FreshPool {
                log::info!("another manager has taken over; pages of the old pool move to the new one");
            }
        }
        self.port = Some(port);
    }

    /// Withdraws all hints, and hands everything back that was granted and is not mapped, offers that nobody has looked
    /// at included.
    pub(crate) fn leave(&mut self, engine: &Mutex<Engine>) {
        {
            let mut engine = lock(engine);
            (0..engine.guest.table.pages()).for_each(|page| engine.forget_hint(page));
        }
        self.return_references(engine);
        self.fetch_offers(engine);
        {
            let mut engine = lock(engine);
            let candidates = self.candidates.drain(..);
            engine.returns.extend(candidates.map(|candidate| candidate.place));
            let stretches = self.pass.stretches.drain(..);
            engine.returns.extend(stretches.flat_map(Stretch::into_places));
        }
        self.return_references(engine);
    }

    fn forget_grants(&mut self) {
        self.candidates.clear();
        self.wanted.clear();
        self.pass.stretches.clear();
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

/// Copies of the pages still private and unwritten, and their reports.
fn copy_private(engine: &Engine, wanted: &[Report], bytes: &mut Vec<Page>) -> Vec<Report> {
    let guest = &engine.guest;
    let mut pages = Vec::with_capacity(wanted.len());
    // Never shortened, or every call would fill it with zeros first.
    bytes.resize(bytes.len().max(wanted.len()), [0; PAGE_SIZE]);
    for report in wanted {
        let page = report.gfn.get();
        if guest.table.state(page) == State::Private {
            let copy = &mut bytes[pages.len()];
            guest.span(PageRun::of(page..page + 1)).copy_out(0, copy);
            pages.push(*report);
        }
    }
    pages
}

/// Every reference that mappings of the newest pool hold.
///
/// The fault handler may have a pool page in transit while it lets a write through. Left out, its reference would be
/// dropped under a page that is mapped, so such pages are waited for; the handler waits for nobody.
pub(crate) fn held_slots(engine: &Engine) -> Vec<Slot> {
    let table = &engine.guest.table;
    let mut held = Vec::new();
    for page in 0..table.pages() {
        while table.state(page) == State::InTransit {
            std::thread::yield_now();
        }
        let place = table.detail(page);
        if is_mapped(engine, page) && engine.pools.is_newest(place) {
            held.push(engine.pools.slot(place).1);
        }
    }
    held
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

fn is_ready(port: &dyn Port) -> bool {
    let ready = port.offers_ready();
    let mut fds = [PollFd::from_borrowed_fd(ready.as_fd(), PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut fds, Some(&now)), Ok(count) if count > 0)
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
