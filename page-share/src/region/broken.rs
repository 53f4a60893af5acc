//! Copies that the kernel made of pool pages come home without the scan, which may be waiting for its manager.

use crate::page::Gfn;
use crate::region::engine::lock;
use crate::region::kernel::{Found, Look, Mappings};
use crate::region::mover::BATCH;
use crate::region::run::{PageRun, runs_of};
use crate::region::table::{Marks, State};
use crate::region::{Engine, Region};

impl Region {
    /// Brings pages home that writes have parted from the pool, `pages` of them or a few more, so that they can be
    /// compressed or swapped. The scan does the same when they have been quiet for a while. This is for a guest that has
    /// nothing else to give. It looks through the guest's page tables, and never waits for the manager or the disk. Returns
    /// how many came home.
    pub fn rehome_broken(&self, pages: u32) -> u32 {
        let (mut home, mut found) = (0, Vec::new());
        let table = self.guest.table();
        for part in self.guest.layout().runs() {
            for piece in part.pieces(BATCH * 4) {
                if home >= pages {
                    return home;
                }
                if piece.pages().any(|page| table.state(page).is_pool()) {
                    home += self.rehome_broken_of(&mut lock(&self.engine), piece, &mut found);
                }
            }
        }
        home
    }

    fn rehome_broken_of(&self, engine: &mut Engine, piece: PageRun, found: &mut Vec<Found>) -> u32 {
        found.clear();
        if self.guest.scan(piece, Look::Broken, found).is_err() {
            return 0;
        }
        let layout = self.guest.layout();
        let runs = found
            .iter()
            .filter_map(|found| layout.run_at(found.start, found.end));
        let broken = runs.flat_map(PageRun::pages).filter(|&page| self.is_broken(page));
        let runs = runs_of(broken.collect::<Vec<_>>());
        // A page that comes home may part a mapping in three.
        let has_room = |_: &PageRun| Mappings::of_process().room() > 2;
        let runs = runs.into_iter().take_while(has_room);
        runs.map(|run| engine.merger().rehome(run)).sum()
    }

    /// Whether `page`, of which the kernel has made a copy, is one that may come home.
    fn is_broken(&self, page: Gfn) -> bool {
        let table = self.guest.table();
        if table.relabel(page, State::Shared, State::Broken) {
            self.guest.counters().cow_breaks.add(1);
        }
        table.state(page) == State::Broken && !table.is_marked(page, Marks::EXCLUDED)
    }
}
