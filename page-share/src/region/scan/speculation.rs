//! Guesses: where every sixteenth quiet page equals a pool page, and the distances agree, so do most likely the pages
//! between. Those are claimed and compared without having been sketched, reported and looked up first: their memory
//! is read once instead of twice. A wrong guess costs a comparison, and the page is not guessed about again.

use std::sync::Mutex;

use crate::page::{Gfn, Slot};
use crate::port::{Answer, REPORT_BATCH};
use crate::region::engine::Engine;
use crate::region::scan::look::Scanned;
use crate::region::scan::scanner::{Scanner, lock};
use crate::region::table::state::{State, mark};

/// One quiet page in this many is sketched and reported ahead of the others.
const STEP: usize = 16;

impl Scanner {
    /// Reports a part of the quiet pages, claims pool pages for those between, and takes both out of `scanned.quiet`.
    pub(super) fn guess(&mut self, engine: &Mutex<Engine>, scanned: &mut Scanned) {
        if scanned.quiet.len() <= STEP || !self.is_connected() {
            return;
        }
        let quiet = std::mem::take(&mut scanned.quiet);
        // Also the last one, so that nothing lies outside.
        let is_ahead = |at: usize| at.is_multiple_of(STEP) || at + 1 == quiet.len();
        let ahead: Vec<u32> = (0..quiet.len())
            .filter(|&at| is_ahead(at))
            .map(|at| quiet[at])
            .collect();
        let known = self.candidates.len();
        let reports = std::mem::take(&mut scanned.reports);
        lock(engine).sketch(&ahead, &self.hasher, scanned);
        let ahead = std::mem::replace(&mut scanned.reports, reports);
        self.report(engine, &ahead);
        let between = self.between(engine, known, &quiet);
        let granted = self.claim(engine, &between);
        let rest = (0..quiet.len()).filter(|&at| !is_ahead(at)).map(|at| quiet[at]);
        scanned.quiet = rest.filter(|page| granted.binary_search(page).is_err()).collect();
    }

    /// Pages between two that were just granted places the same distance apart, and the slots they should equal.
    fn between(&self, engine: &Mutex<Engine>, known: usize, quiet: &[u32]) -> Vec<(u32, Slot)> {
        let engine = lock(engine);
        let table = &engine.guest.table;
        let mut between = Vec::new();
        for pair in self.candidates[known..].windows(2) {
            let (first, last) = (pair[0], pair[1]);
            let distance = last.page.wrapping_sub(first.page);
            let agree = distance as usize <= STEP && last.place.checked_sub(first.place) == Some(distance);
            for step in 1..if agree { distance } else { 0 } {
                let page = first.page + step;
                let may = quiet.binary_search(&page).is_ok()
                    && table.state(page) == State::Private
                    && !table.is_marked(page, mark::REPORTED | mark::DIFFERED | mark::UNSHARABLE);
                if may {
                    between.push((page, engine.pools.slot(first.place + step).1));
                }
            }
        }
        between
    }

    /// Asks for references and notes the pages that got them; returns those pages, in order.
    fn claim(&mut self, engine: &Mutex<Engine>, between: &[(u32, Slot)]) -> Vec<u32> {
        let mut granted = Vec::with_capacity(between.len());
        let Some(generation) = self.generation() else {
            return granted;
        };
        let mut answers = Vec::new();
        for pages in between.chunks(REPORT_BATCH) {
            let slots: Vec<Slot> = pages.iter().map(|&(_, slot)| slot).collect();
            let call = self.call(engine, |port| port.claim(generation, &slots, &mut answers));
            if call.is_none() {
                break;
            }
            let engine = lock(engine);
            for (&(page, slot), answer) in pages.iter().zip(&answers) {
                if *answer == Answer::Shared(slot) {
                    engine.guest.table.set_pending(page, false);
                    self.accept(&engine, Gfn::new(page), slot);
                    granted.push(page);
                }
            }
        }
        granted
    }
}
