//! What is merged first where mappings are scarce, and how pages move from an old pool to the present one.

use std::sync::Mutex;

use super::{Candidate, Scanner};
use crate::page::Gfn;
use crate::region::engine::{Engine, lock};
use crate::region::kernel::Mappings;
use crate::region::merge::{MergeRun, Merger};
use crate::region::run::{PageRun, runs_of};
use crate::region::table::State;

/// Pages of earlier pools brought home for each chunk scanned.
const MIGRATE: usize = 128;

impl Scanner {
    /// Orders the candidates into runs, the longest last, as far as the mappings allow; the rest waits.
    pub(super) fn plan_merges(&mut self, engine: &Mutex<Engine>) -> Vec<MergeRun> {
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

    pub(super) fn merge_next(&mut self, engine: &Mutex<Engine>, pages: u32) -> u32 {
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

    /// Lets go of pools whose managers are gone once none of their pages is mapped: until every process has, the whole
    /// old pool stays in memory.
    pub(in crate::region) fn forget_old_pools(&self, merger: &mut Merger) {
        let (table, pools) = (self.guest.table(), merger.pools());
        // Looked at once: between two looks the fault handler may take a page in hand.
        let in_use = |page| match table.state(page) {
            State::InTransit => true,
            state => state.is_pool() && !pools.is_newest(table.last_location(page)),
        };
        if pools.has_old() && !table.all().pages().any(in_use) {
            merger.forget_old_pools();
        }
    }

    /// Brings home some pages of a pool whose manager is gone, so that they can move to the present one. Until it has, each
    /// takes memory of its own, and the old pool stays in memory until all have: where growth waits, they wait.
    pub(super) fn migrate(&self, merger: &mut Merger, chunk: PageRun) {
        let (table, pools) = (self.guest.table(), merger.pools());
        if !pools.has_old() || self.guest.gate().is_closed() {
            return;
        }
        let is_old = |page: &Gfn| table.located(*page).is_some_and(|index| !pools.is_newest(index));
        for run in runs_of(chunk.pages().filter(is_old).take(MIGRATE)) {
            merger.rehome(run);
        }
    }
}
